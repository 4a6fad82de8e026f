"""A model of the teacher's family with other sizes and random weights."""

from collections.abc import Sequence
from typing import Any

from kdexport.train.sizes import StudentSpec, new_model, resized_config


def from_scratch(teacher: Any, spec: StudentSpec, kept_ids: Sequence[int] | None) -> Any:
    """A randomly initialised model of the teacher's family with other sizes."""
    return new_model(resized_config(teacher.config, spec, kept_ids), teacher, kept_ids)


def check_scratch(config: Any, spec: StudentSpec) -> None:
    """Refuse sizes that no model of this family can have."""
    resized_config(config, spec, None)
