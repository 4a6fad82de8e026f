"""The graphs in the package are the ones that this code makes, and hold what the probes ask for."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from kdexport.export import probe_graphs
from kdexport.export.probe_graphs import BLOCK, FOLDER, GRAPHS, SIZES, probe_graph
from kdexport.export.probe_graphs import write_probe_graphs as write
from kdexport.runtime import attention_probe, probes


def test_the_shipped_graphs_are_those_that_are_made_here(tmp_path: Path) -> None:
    made = {path.name: onnx.load(path, load_external_data=False) for path in write(tmp_path)}
    shipped = {p.name: onnx.load(p, load_external_data=False) for p in FOLDER.iterdir()}
    assert made == shipped


def test_the_shipped_graphs_are_small() -> None:
    sizes = [path.stat().st_size for path in probes.FOLDER.iterdir()]
    assert len(sizes) == len(GRAPHS) * len(SIZES) + 1  # of attention
    assert max(sizes) < 1000  # the weights are not in them


def test_both_sides_mean_the_same_sizes_and_kernels() -> None:
    """The runtime may not import the export part, so the constants stand twice."""
    assert (dict(SIZES), BLOCK) == (probes.SIZES, probes.BLOCK)
    assert list(GRAPHS) == list(probes.KERNELS)
    for name in ("N_HEADS", "N_KV_HEADS", "HEAD_DIM"):
        assert getattr(probe_graphs, name) == getattr(attention_probe, name)
    assert f"{probe_graphs.ATTENTION}.onnx" == attention_probe.GRAPH.name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", GRAPHS)
def test_the_probes_draw_what_the_graph_declares(kernel: str, size: str) -> None:
    """Names, shapes and types of the constants; random bytes need no large arrays to be told."""
    drawn = probes.KERNELS[kernel](np.random.default_rng(0), *SIZES[size]).constants
    declared = {
        t.name: (tuple(t.dims), onnx.helper.tensor_dtype_to_np_dtype(t.data_type))
        for t in probe_graph(kernel, size).graph.initializer
    }
    assert {name: (a.shape, a.dtype) for name, a in drawn.items()} == declared
