from pathlib import Path

import pytest

from kdexport.content.brands import load_brand
from kdexport.errors import InputError

PACK = """name: Tern
voice: plain and dry
preferred: [kettle]
banned: [cheap, "=hot"]
disclosures: [Ad]
claims: ["#1", guaranteed, 100 %]
examples: ["Tea, sooner."]
"""


def test_a_style_pack_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tern.yaml"
    path.write_text(PACK)
    brand = load_brand(path)
    assert (brand.name, brand.voice) == ("Tern", "plain and dry")
    assert brand.claims == ("#1", "guaranteed", "100 %")
    assert brand.banned == ("cheap", "=hot")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("name: Tern\n", "", "", "name: is missing"),
        ("claims", "claim", ":6", "unknown key 'claim'; did you mean 'claims'?"),
        ("[cheap, ", "cheap #[", ":4", "banned: should be a list"),
        ("[Ad]", "[1]", ":5", "disclosures.0: should be a text"),
    ],
)
def test_a_bad_pack_is_one_line(
    tmp_path: Path, old: str, new: str, line: str, message: str
) -> None:
    path = tmp_path / "tern.yaml"
    path.write_text(PACK.replace(old, new))
    with pytest.raises(InputError) as caught:
        load_brand(path)
    assert str(caught.value).startswith(f"{path}{line}")
    assert message in str(caught.value)
