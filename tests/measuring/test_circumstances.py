"""What a report tells beside its numbers."""

import sys

import pytest

from kdexport.measuring.circumstances import of_bench


@pytest.mark.parametrize("program", ["/usr/bin/kdexport", "/x/kdexport/__main__.py"])
def test_the_command_is_told_as_it_can_be_called_again(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "bench", "x"])
    assert of_bench()["command"] == ["kdexport", "bench", "x"]
