"""An ONNX graph under work: its nodes, and its weights as numpy arrays beside it.

Passes change drafts; `save_drafts` writes graphs that share one weight file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from kdexport.bundle import weights_location

Array = np.ndarray[Any, Any]
INLINE_BYTES = 256  # smaller tensors stay in the graph's own file
ALIGNMENT = 4096  # of large tensors in the weight file, so that they can be mapped into memory
LARGE_BYTES = 1 << 16  # the others stand close: many scales and norms are shared, too
SMALL_ALIGNMENT = 64
IR_VERSION = 10


@dataclass
class Draft:
    """Nodes in topological order, typed inputs and outputs, and named constant arrays."""

    graph: onnx.GraphProto
    opsets: list[onnx.OperatorSetIdProto]
    weights: dict[str, Array]

    def readers(self, value: str) -> list[onnx.NodeProto]:
        """The nodes that read a value."""
        return [node for node in self.graph.node if value in node.input]

    def writer(self, value: str) -> onnx.NodeProto | None:
        """The node that makes a value; None for inputs and constants."""
        return next((node for node in self.graph.node if value in node.output), None)

    def replace(self, old: onnx.NodeProto, new: Sequence[onnx.NodeProto]) -> None:
        """Put nodes where one was (a node is known by what it makes)."""
        made = list(old.output)
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            nodes.extend(new if list(node.output) == made else [node])
        self.set_nodes(nodes)

    def set_nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Take these nodes as the graph's, in this order."""
        copies = []
        for node in nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        del self.graph.node[:]
        self.graph.node.extend(copies)

    def products(self) -> Iterator[onnx.NodeProto]:
        """MatMuls of an activation and a constant matrix."""
        for node in self.graph.node:
            if node.op_type == "MatMul" and self._is_matrix(node.input[1]):
                yield node

    def _is_matrix(self, name: str) -> bool:
        return name in self.weights and self.weights[name].ndim == 2

    def remove_unused(self) -> None:
        """Drop nodes and weights that no output depends on."""
        needed = {output.name for output in self.graph.output}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.graph.node):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        self.set_nodes(kept[::-1])
        self.weights = {name: w for name, w in self.weights.items() if name in needed}

    def copy(self) -> "Draft":
        """A draft whose nodes can be changed apart; the arrays are shared."""
        graph = onnx.GraphProto()
        graph.CopyFrom(self.graph)
        return Draft(graph, list(self.opsets), dict(self.weights))


def load_draft(path: Path) -> Draft:
    """Read an ONNX file and the weights it refers to."""
    model = onnx.load(path)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    del model.graph.initializer[:]
    del model.graph.value_info[:]
    return Draft(model.graph, list(model.opset_import), weights)


Places = dict[tuple[int, int], tuple[int, int]]
"""Memory of an array -> offset and length in the weight file."""


def save_drafts(drafts: Mapping[str, Draft], folder: Path, weights_name: str) -> None:
    """Write each draft as ``folder/NAME``; arrays that share their memory are stored once.

    Names may have folders in them; the weights lie beside or below each graph.
    """
    for name in (weights_name, *drafts):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    places = save_weights(drafts.values(), folder / weights_name)
    for name, draft in drafts.items():
        location = weights_location(name, weights_name)
        (folder / name).write_bytes(graph_bytes(draft, places, location))


def save_weights(drafts: Iterable[Draft], path: Path) -> Places:
    """Write the arrays of drafts to one file."""
    places: Places = {}
    with path.open("wb") as file:
        for draft in drafts:
            for array in draft.weights.values():
                if _memory(array) not in places and _is_outside(array):
                    alignment = ALIGNMENT if array.nbytes >= LARGE_BYTES else SMALL_ALIGNMENT
                    file.write(b"\0" * (-file.tell() % alignment))
                    places[_memory(array)] = (file.tell(), array.nbytes)
                    file.write(np.ascontiguousarray(array).tobytes())
    return places


def graph_bytes(draft: Draft, places: Places, location: str) -> bytes:
    """An ONNX file of a draft; arrays without a place in the file ``location`` are inside it."""
    graph = onnx.GraphProto()
    graph.CopyFrom(draft.graph)
    for name, array in draft.weights.items():
        graph.initializer.append(_tensor(name, array, places.get(_memory(array)), location))
    model = onnx.helper.make_model(graph, opset_imports=draft.opsets, ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


def _memory(array: Array) -> tuple[int, int]:
    """Address and size, equal for the views of one array that show the whole of it."""
    return int(array.__array_interface__["data"][0]), array.nbytes


def _is_outside(array: Array) -> bool:
    """Shapes and axes stay inside, where every reader can infer from them."""
    return array.nbytes >= INLINE_BYTES and array.dtype != np.int64


def _tensor(
    name: str, array: Array, place: tuple[int, int] | None, location: str
) -> onnx.TensorProto:
    if place is None:
        return numpy_helper.from_array(array, name)
    tensor = onnx.TensorProto(
        name=name,
        dims=array.shape,
        data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=onnx.TensorProto.EXTERNAL,
    )
    offset, length = place
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
