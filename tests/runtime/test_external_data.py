import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from kdexport.errors import InputError
from kdexport.runtime.external_data import external_locations


def model_with(locations: list[str]) -> bytes:
    graph = helper.make_graph([], "g", [], [])
    graph.initializer.append(helper.make_tensor("inline", TensorProto.FLOAT, [1], [1.0]))
    for number, location in enumerate(locations):
        tensor = TensorProto(name=str(number), data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        tensor.external_data.add(key="offset", value="4096")
        graph.initializer.append(tensor)
    content: bytes = helper.make_model(graph).SerializeToString()
    return content


@given(st.lists(st.text(min_size=1, max_size=20), max_size=5))
def test_every_location_is_found(locations: list[str]) -> None:
    assert external_locations(model_with(locations)) == set(locations)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(InputError):
        external_locations(content)


def test_truncated_is_refused() -> None:
    with pytest.raises(InputError, match="truncated"):
        external_locations(model_with(["weights.bin"])[:-3])
