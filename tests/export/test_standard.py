"""The graph for other tools computes what ours does, however a batch is padded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.export.bundles import export_bundle
from kdexport.export.draft import load_draft
from kdexport.export.standard import STANDARD, standard_graph
from kdexport.runtime.session import Session, open_session

TEXTS = [list(range(50, 60)), list(range(5, 45)), list(range(100, 117))]
LONGEST = max(map(len, TEXTS))
ATOL = 1e-4  # float32, in another order of summing
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def bundle(
    request: pytest.FixtureRequest,
    checkpoints: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    out = tmp_path_factory.mktemp("standard") / "b"
    return export_bundle(checkpoints[request.param], out, name="x")


class Standard:
    """The standard graph of a bundle, and the cache that it hands from call to call."""

    def __init__(self, bundle: Bundle, n_rows: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(bundle.file(STANDARD)), options)
        pasts = [i for i in self.session.get_inputs() if i.name.startswith("past_key_values.")]
        shapes = {i.name: (n_rows, i.shape[1], 0, i.shape[3]) for i in pasts}
        self.past = {n: np.zeros(shape, dtype=np.float32) for n, shape in shapes.items()}

    def run(self, ids: Array, mask: Array) -> Array:
        feeds = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in {i.name for i in self.session.get_inputs()}:
            feeds["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        logits, *present = self.session.run(None, feeds | self.past)
        self.past = dict(zip(self.past, present, strict=True))
        return np.asarray(logits)


def padded(side: str) -> tuple[Array, Array, list[slice]]:
    ids, mask = (np.zeros((len(TEXTS), LONGEST), dtype=np.int64) for _ in range(2))
    places = []
    for row, text in enumerate(TEXTS):
        begin = LONGEST - len(text) if side == "left" else 0
        places.append(slice(begin, begin + len(text)))
        ids[row, places[-1]], mask[row, places[-1]] = text, 1
    return ids, mask, places


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_moves_nothing(bundle: Bundle, side: str) -> None:
    ours, theirs = open_session(bundle, n_threads=1), Standard(bundle, len(TEXTS))
    ids, mask, places = padded(side)
    logits = theirs.run(ids, mask)
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(logits[row, places[row]], ours.score(text), atol=ATOL)
    grown = [list(text) for text in TEXTS]
    for step in ([7, 8, 9], [10, 11, 12]):
        mask = np.concatenate([mask, np.ones((len(TEXTS), 1), dtype=np.int64)], axis=1)
        logits = theirs.run(np.asarray(step, dtype=np.int64)[:, None], mask)
        for row, token in enumerate(step):
            grown[row].append(token)
            np.testing.assert_allclose(logits[row, 0], ours.score(grown[row])[-1], atol=ATOL)


@pytest.mark.parametrize("sizes", [(40,), (39, 1), (13, 1, 20, 6)])
def test_one_text_in_parts(bundle: Bundle, sizes: Sequence[int]) -> None:
    text = np.asarray([TEXTS[1]], dtype=np.int64)
    theirs, read, found = Standard(bundle, 1), 0, []
    for size in sizes:
        read += size
        mask = np.ones((1, read), dtype=np.int64)
        found.append(theirs.run(text[:, read - size : read], mask)[0])
    ours: Session = open_session(bundle, n_threads=1)
    np.testing.assert_allclose(np.concatenate(found), ours.score(TEXTS[1]), atol=ATOL)


def test_its_names_are_those_of_other_exporters(bundle: Bundle) -> None:
    graph = onnx.load(bundle.file(STANDARD), load_external_data=False).graph

    def dims(value: onnx.ValueInfoProto) -> list[Any]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    inputs = {value.name: dims(value) for value in graph.input}
    outputs = {value.name: dims(value) for value in graph.output}
    model = bundle.manifest.model
    assert inputs["input_ids"] == ["batch_size", "sequence_length"]
    assert inputs["attention_mask"] == ["batch_size", "total_sequence_length"]
    heads, size = model.n_kv_heads, model.head_dim
    assert inputs["past_key_values.1.value"] == ["batch_size", heads, "past_sequence_length", size]
    assert outputs["present.0.key"] == ["batch_size", heads, "total_sequence_length", size]
    assert outputs["logits"][:2] == ["batch_size", "sequence_length"]
    assert not inputs.keys() & {"seqlens_k", "total_sequence_length", "logit_rows"}


def test_ours_is_left_as_it_is_and_needed(bundle: Bundle) -> None:
    draft = load_draft(bundle.file(bundle.manifest.graphs.decode))
    before, names = draft.graph.SerializeToString(), set(draft.weights)
    standard = standard_graph(draft)
    assert draft.graph.SerializeToString() == before and set(draft.weights) == names
    with pytest.raises(InputError, match="selects no logits"):
        standard_graph(standard)
