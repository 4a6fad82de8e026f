"""The probe of attention in 8 bits: right here, and able to tell what is wrong or not there."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kdexport.runtime import attention_probe
from kdexport.runtime.attention_probe import ALLOWED, probe_attention


def changed(tmp_path: Path, name: str, value: Any) -> Path:
    """The probe's graph with another attribute, or none where ``value`` is None."""
    model = onnx.load(attention_probe.GRAPH, load_external_data=False)
    (node,) = model.graph.node
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, *([onnx.helper.make_attribute(name, value)] if value else [])])
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("n_threads", [1, 2])
def test_it_is_right_here(n_threads: int) -> None:
    found = probe_attention(n_threads=n_threads)
    assert found.verdict == "ok", found.why
    assert found.value is not None and found.value < ALLOWED / 10


@pytest.mark.parametrize(("name", "value"), [("scale", 0.13), ("local_window_size", 30)])
def test_another_attention_is_wrong(
    name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_probe, "GRAPH", changed(tmp_path, name, value))
    found = probe_attention(n_threads=1)
    assert found.verdict == "wrong" and found.value is not None and found.value > 10 * ALLOWED


def test_no_number_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_probe, "_attended", lambda *_: np.full((1, 256), np.nan))
    found = probe_attention(n_threads=1)
    assert found.verdict == "wrong" and found.value == np.finfo(np.float64).max


def test_an_onnx_runtime_that_lacks_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that is older than the attribute: it refuses the graph."""
    monkeypatch.setattr(attention_probe, "GRAPH", changed(tmp_path, "of_another_time", 1))
    found = probe_attention(n_threads=1)
    assert (found.verdict, found.value) == ("wrong", None)
    assert "ONNX Runtime has none" in found.why and "\n" not in found.why
