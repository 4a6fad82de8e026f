"""docs/content.md names all that there is."""

import re
from pathlib import Path

from kdexport.content.audiences import Past, Segment
from kdexport.content.brands import Brand
from kdexport.content.briefs import Brief
from kdexport.content.channels import PLACES, Channel, Part, load_channels
from kdexport.content.counting import COUNTERS
from kdexport.content.languages import load_languages

DOCUMENT = Path(__file__).parents[2] / "docs" / "content.md"


def test_fields_channels_counters_and_languages_are_in_the_document() -> None:
    text = DOCUMENT.read_text("utf-8")
    named = set(re.findall(r"`([^`\n]+)`", text)) | set(re.findall(r"^(\w+):", text, re.M))
    wanted = {*Brief.model_fields, *Brand.model_fields, *load_channels(), *COUNTERS}
    wanted |= {*Segment.model_fields, *Past.model_fields}
    wanted |= {*load_languages(), *(f"{{{place}}}" for place in PLACES)}
    wanted |= {*Channel.model_fields, *Part.model_fields} - {"name", "labels", "one_line"}
    assert not wanted - named
