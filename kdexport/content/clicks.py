"""How often published copy was clicked: rows of a table."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdexport.content.channels import ChannelName, Channels
from kdexport.content.records import Kind, load_records
from kdexport.data.tables import Row


class Clicked(BaseModel):
    """A text in a channel, and how often it was shown and clicked.

    ``segment``: of the audience that saw it; ``group``: of texts that were tried for one purpose,
    such as the id of their brief.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    text: str = Field(min_length=1)
    channel: ChannelName
    segment: str = ""
    group: str = ""
    impressions: int = Field(ge=1)
    clicks: int = Field(ge=0)

    @model_validator(mode="after")
    def _counts_fit(self) -> "Clicked":
        if self.clicks > self.impressions:
            raise ValueError(f"has {self.clicks} clicks of {self.impressions} impressions")
        return self

    @property
    def rate(self) -> float:
        """The share of impressions that were clicked."""
        return self.clicks / self.impressions


def load_clicks(path: Path, channels: Channels | None = None) -> list[Clicked]:
    """The rows of a table. Raises InputError that names file, line and field."""

    def make(row: Row) -> Clicked:
        return Clicked.model_validate(row.cells, context={"channels": channels})

    return load_records(path, Kind(Clicked, None, make))
