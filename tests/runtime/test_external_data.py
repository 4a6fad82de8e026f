import contextlib

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from kdexport.errors import InputError
from kdexport.runtime.external_data import CHILDREN, external_locations


def outside(location: str) -> TensorProto:
    tensor = TensorProto(name=location, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="4096")
    return tensor


def model_with(locations: list[str]) -> bytes:
    graph = helper.make_graph([], "g", [], [])
    graph.initializer.append(helper.make_tensor("inline", TensorProto.FLOAT, [1], [1.0]))
    graph.initializer.extend(outside(location) for location in locations)
    content: bytes = helper.make_model(graph).SerializeToString()
    return content


def attribute(**parts: object) -> NodeProto:
    node = NodeProto(op_type="Constant", output=["y"])
    node.attribute.append(AttributeProto(name="a", **parts))  # type: ignore[arg-type]
    return node


@given(st.lists(st.text(min_size=1, max_size=20), max_size=5))
def test_every_location_is_found(locations: list[str]) -> None:
    assert external_locations(model_with(locations)) == set(locations)


def test_tensors_are_found_wherever_they_are() -> None:
    sparse = onnx.SparseTensorProto(values=outside("values"), indices=outside("indices"))
    inner = GraphProto(node=[attribute(t=outside("subgraph's constant"))])
    nodes = [
        attribute(t=outside("constant")),
        attribute(tensors=[outside("first"), outside("second")]),
        attribute(g=GraphProto(node=[attribute(g=inner)])),
        attribute(graphs=[GraphProto(initializer=[outside("graphs")])]),
        attribute(sparse_tensor=onnx.SparseTensorProto(values=outside("sparse attribute"))),
        attribute(sparse_tensors=[onnx.SparseTensorProto(values=outside("sparse attributes"))]),
    ]
    function = onnx.FunctionProto(name="f", node=[attribute(t=outside("function"))])
    function.attribute_proto.append(AttributeProto(name="d", t=outside("function's default")))
    model = ModelProto(
        graph=GraphProto(node=nodes, sparse_initializer=[sparse]),
        functions=[function],
        training_info=[onnx.TrainingInfoProto(algorithm=GraphProto(node=nodes[:1]))],
    )
    expected = {"values", "indices", "subgraph's constant", "constant", "first", "second", "graphs"}
    expected |= {"sparse attribute", "sparse attributes", "function", "function's default"}
    assert external_locations(model.SerializeToString()) == expected


def test_the_table_has_every_way_from_a_model_to_a_tensor() -> None:
    """Held against the descriptors of the onnx package, so that a new field is noticed."""

    def leads_to_a_tensor(kind: object, above: tuple[str, ...]) -> bool:
        name = kind.name  # type: ignore[attr-defined]
        if name == "TensorProto" or name in CHILDREN:
            return True
        if name in above:
            return False
        parts = [f.message_type for f in kind.fields if f.message_type]  # type: ignore[attr-defined]
        return any(leads_to_a_tensor(part, (*above, name)) for part in parts)

    descriptors = [ModelProto, GraphProto, NodeProto, AttributeProto]
    descriptors += [onnx.FunctionProto, onnx.SparseTensorProto, onnx.TrainingInfoProto]
    for descriptor in (message.DESCRIPTOR for message in descriptors):
        assert CHILDREN[descriptor.name] == {
            field.number: field.message_type.name
            for field in descriptor.fields
            if field.message_type and leads_to_a_tensor(field.message_type, ())
        }
    assert set(CHILDREN) == {m.DESCRIPTOR.name for m in descriptors} | {"TensorProto"}


# An entry {key: "offset", key: "location", value: "x", value: "evil"}; the last of each is taken.
DOUBLE = b"\x0a\x06offset\x0a\x08location\x12\x01x\x12\x04evil"


def test_an_entry_with_fields_given_twice() -> None:
    tensor = b"\x6a" + bytes([len(DOUBLE)]) + DOUBLE
    assert TensorProto.FromString(tensor).external_data[0].key == "location"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    model = b"\x3a" + bytes([len(graph)]) + graph
    assert external_locations(model) == {"x", "evil"}


def test_a_tag_that_protobuf_would_cut_is_refused() -> None:
    tag = (1 << 32) | (7 << 3 | 2)  # cut to 32 bits: the graph
    long = bytes([0x80 | (tag & 0x7F), 0x80, 0x80, 0x80, tag >> 28]) + b"\x00"
    with pytest.raises(InputError, match=r"^x\.onnx: is no ONNX graph, corrupt"):
        external_locations(long, "x.onnx")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(InputError):
        external_locations(content)


def test_truncated_is_refused() -> None:
    with pytest.raises(InputError, match="truncated"):
        external_locations(model_with(["weights.bin"])[:-3])
