import numpy as np
import pytest
from onnx import helper

from kdexport.errors import InputError
from kdexport.export.draft import Draft
from kdexport.export.layers import LayerAttention
from kdexport.export.passes.own_attention import own_attention

TABLES = (np.ones((10, 8), dtype=np.float32), np.zeros((10, 8), dtype=np.float32))


def draft_of(n_layers: int) -> Draft:
    nodes = [
        helper.make_node(
            "GroupQueryAttention",
            [f"q{i}", "", "", f"past_key_values.{i}.key", "v", "l", "t", "old_cos", "old_sin"],
            [f"y{i}"],
            num_heads=2,
            scale=0.5,
            local_window_size=7,
            rotary_embedding_dim=4,
        )
        for i in range(n_layers)
    ]
    return Draft(helper.make_graph(nodes, "g", [], []), [], {})


def test_each_layer_gets_its_own_and_equal_tables_are_shared() -> None:
    draft = draft_of(3)
    other = (TABLES[0] * 2, TABLES[1])
    layers = [
        LayerAttention(16, 0.25, 0.0, TABLES),
        LayerAttention(None, None, 5.0, TABLES),
        LayerAttention(16, 0.25, 0.0, other),
    ]
    own_attention(draft, layers)
    stated = [
        {a.name: helper.get_attribute_value(a) for a in n.attribute} for n in draft.graph.node
    ]
    assert stated[0] == {"num_heads": 2, "scale": 0.25, "local_window_size": 16, "softcap": 0.0}
    assert stated[1] == {"num_heads": 2, "scale": 0.5, "local_window_size": -1, "softcap": 5.0}
    places = [list(node.input[7:9]) for node in draft.graph.node]
    assert places[0] == places[1]
    assert places[2][0] != places[0][0]
    assert places[2][1] == places[0][1]
    for (cos, sin), layer in zip(places, layers, strict=True):
        assert layer.rotary is not None
        assert draft.weights[cos] is layer.rotary[0]
        assert draft.weights[sin] is layer.rotary[1]


def test_a_layer_without_attention_is_refused() -> None:
    layer = LayerAttention(None, None, 0.0, None)
    with pytest.raises(InputError, match="1 of 2 layers run with a cache"):
        own_attention(draft_of(1), [layer, layer])


def test_tables_of_a_width_that_cannot_be_rotated_are_refused() -> None:
    odd = (np.ones((10, 12), dtype=np.float32), np.ones((10, 12), dtype=np.float32))
    with pytest.raises(InputError, match="24 channels of a head are rotated"):
        own_attention(draft_of(1), [LayerAttention(None, None, 0.0, odd)])
