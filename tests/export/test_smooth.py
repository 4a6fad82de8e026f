"""Smoothing changes no function, and makes one easier to round."""

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper

from kdexport.bundle import Bundle
from kdexport.export import calibrate
from kdexport.export.assign import assign
from kdexport.export.calibrate import Observed, observe
from kdexport.export.draft import Draft
from kdexport.export.kernels import KERNELS
from kdexport.export.parity import mean_kl
from kdexport.export.rounding import round_matrix
from kdexport.export.smooth import best_scale, smooth
from tests.export.conftest import Seen
from tests.export.drafts import Array, correlated, logits, matrix, opened, run

GRID = KERNELS["rows8u"].grid
EVERY = ("llama", "llama-untied", "gpt2", "gpt2-varied", "gemma3-varied")
RNG = np.random.default_rng(0)


def moved(before: Draft, after: Draft) -> set[str]:
    return {n for n in before.weights if not np.array_equal(before.weights[n], after.weights[n])}


@pytest.mark.parametrize("family", EVERY)
def test_the_function_stays(
    parents: dict[str, Bundle], seen: dict[str, Seen], texts: list[Array], family: str
) -> None:
    draft, observed = seen[family]
    changed = draft.copy()
    after = smooth(changed, observed, GRID)
    assert len(moved(draft, changed)) >= 4  # norms and the products after them
    expected = logits(parents[family], draft, texts[0])
    found = logits(parents[family], changed, texts[0])
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert list(changed.graph.node) == list(draft.graph.node)
    assert set(after) == set(observed)


def scaled_norm(n_readers: int, *, gated: bool = False) -> tuple[Draft, dict[str, Observed], Array]:
    """A norm of x, one or two products of it, or a gate times a product; and rows of x."""
    nodes = [helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"], axis=-1)]
    nodes += [helper.make_node("MatMul", ["n", f"W{i}"], [f"y{i}"]) for i in range(n_readers)]
    if gated:
        nodes += [
            helper.make_node("Split", ["y0", "widths"], ["gate", "up"], axis=-1),
            helper.make_node("Sigmoid", ["gate"], ["open"]),
            helper.make_node("Mul", ["open", "up"], ["inner"]),
            helper.make_node("MatMul", ["inner", "D"], ["z"]),
        ]
    outputs = ["z"] if gated else [f"y{i}" for i in range(n_readers)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "k"]) for name in outputs],
    )
    weights = {f"W{i}": matrix(32, 64, seed=i) for i in range(n_readers)}
    weights |= {"g": RNG.lognormal(sigma=1.5, size=32).astype(np.float32)}
    weights |= {"b": RNG.normal(size=32).astype(np.float32)}
    if gated:
        weights |= {"widths": np.asarray([32, 32]), "D": matrix(32, 8, seed=9)}
    draft = Draft(graph, [helper.make_opsetid("", 21)], weights)
    x = correlated(80, 32)
    watched = draft.copy()
    read = sorted({node.input[0] for node in draft.products()})
    del watched.graph.output[:]
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "k"]) for name in read
    )
    found = zip(read, run(watched, x=x), strict=True)
    return draft, {n: Observed(np.abs(v).max(0), v.T @ v, v) for n, v in found}, x


def test_a_norm_and_its_shift_take_the_difference() -> None:
    draft, observed, x = scaled_norm(1)
    changed = draft.copy()
    after = smooth(changed, observed, GRID)
    assert moved(draft, changed) == {"g", "b", "W0"}
    scale = draft.weights["g"] / changed.weights["g"]
    np.testing.assert_allclose(changed.weights["b"] * scale, draft.weights["b"], rtol=1e-5)
    np.testing.assert_allclose(
        changed.weights["W0"], draft.weights["W0"] * scale[:, None], rtol=1e-5
    )
    np.testing.assert_allclose(after["n"].largest, observed["n"].largest / scale, rtol=1e-5)
    np.testing.assert_allclose(run(changed, x=x)[0], run(draft, x=x)[0], rtol=1e-4, atol=1e-3)


def test_half_of_a_product_takes_it_from_after_the_gate() -> None:
    draft, observed, x = scaled_norm(1, gated=True)
    observed["n"] = Observed(observed["n"].largest, observed["n"].gram, observed["n"].samples * 0)
    changed = draft.copy()
    smooth(changed, observed, GRID)
    assert {"W0", "D"} <= moved(draft, changed)
    np.testing.assert_allclose(run(changed, x=x)[0], run(draft, x=x)[0], rtol=1e-3, atol=1e-3)
    # The gate's own columns are as they were but for what the norm before them took.
    taken = draft.weights["g"] / changed.weights["g"]
    gate = draft.weights["W0"][:, :32] * taken[:, None]
    np.testing.assert_allclose(changed.weights["W0"][:, :32], gate, rtol=1e-5)


def test_a_norm_of_two_readers_stays() -> None:
    draft, observed, _ = scaled_norm(2)
    changed = draft.copy()
    assert smooth(changed, observed, GRID) == observed
    assert moved(draft, changed) == set()


def test_weights_that_something_else_reads_stay() -> None:
    """A norm's weight, or a product's, that another node uses too is no one's to change."""
    for name in ("g", "W0"):
        draft, observed, _ = scaled_norm(1)
        other = helper.make_node("ReduceSum", [name], ["other"])
        draft.set_nodes([*draft.graph.node, other])
        changed = draft.copy()
        smooth(changed, observed, GRID)
        assert moved(draft, changed) == set(), name


def test_a_product_that_another_output_depends_on_stays() -> None:
    """Half of its columns cannot be divided where all of it is read elsewhere too."""
    draft, observed, x = scaled_norm(1, gated=True)
    second = helper.make_node("MatMul", ["x", "W0"], ["second"])
    draft.set_nodes([*draft.graph.node, second])
    draft.graph.output.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, None))
    observed["x"] = Observed(np.abs(x).max(0), x.T @ x, x)
    changed = draft.copy()
    smooth(changed, observed, GRID)
    assert "W0" not in moved(draft, changed)
    for found, expected in zip(run(changed, x=x), run(draft, x=x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_the_sum_beside_a_norm_is_not_divided() -> None:
    """A product of SkipSimplifiedLayerNormalization's fourth output, which no weight multiplies."""
    norm = helper.make_node(
        "SkipSimplifiedLayerNormalization",
        ["x", "x", "g"],
        ["n", "", "", "sum"],
        domain="com.microsoft",
        epsilon=1e-5,
    )
    draft, observed, _ = scaled_norm(1)
    product = helper.make_node("MatMul", ["sum", "W0"], ["y0"])
    draft.set_nodes([norm, product])
    draft.opsets.append(helper.make_opsetid("com.microsoft", 1))
    observed["sum"] = observed["n"]
    changed = draft.copy()
    smooth(changed, observed, GRID)
    assert moved(draft, changed) == set()


@pytest.mark.parametrize(
    ("kernel", "block", "share"),
    [("rows8u", 64, 0.5), ("block8", 32, 0.5), ("wide8", 64, 0.5), ("block4", 32, 0.8)],
)
def test_best_scale_is_of_those_tried_the_best(kernel: str, block: int, share: float) -> None:
    """By trying each strength as the paper's equation 4 has it; in 4 bits, by both sizes of x."""
    grid = KERNELS[kernel].grid
    # With this seed, blocks and whole rows want different strengths.
    weights, x = matrix(64, 16, seed=10), correlated(64, 64, seed=10)
    observed = Observed(np.abs(x).max(0), x.T @ x, x)

    def error(scale: Array) -> float:
        rows = (x / scale).astype(np.float64)
        for part in np.split(rows, 64 // block, axis=1):  # views: rounded where they are
            step = np.abs(part).max(1, keepdims=True) / 127
            part[:] = np.rint(part / step) * step
        rounded = round_matrix(weights * scale[:, None], grid).matrix()
        return float(np.square(rows @ rounded - x @ weights).sum())

    tried = [np.ones(64)]
    sizes = [np.abs(x).max(0)] + [np.sqrt(np.square(x).sum(0))] * (kernel == "block4")
    for size, a in itertools.product(sizes, (0.3, 0.45, 0.6, 0.75, 0.9)):
        scale = size**a / np.abs(weights).max(1) ** (1 - a)
        tried.append(scale / np.exp(np.log(scale).mean()))
    errors = [error(scale.astype(np.float32)) for scale in tried]
    found = best_scale(weights, observed, grid)
    np.testing.assert_allclose(found, tried[int(np.argmin(errors))], rtol=1e-4)
    assert min(errors) < share * errors[0]


@pytest.mark.parametrize("kernel", ["rows8u", "wide8", "block8", "block4"])
def test_outlier_channels_harm_less_afterwards(
    parents: dict[str, Bundle], texts: list[Array], seen: dict[str, Seen], kernel: str
) -> None:
    """A model that was made to have outliers, which changes no function, loses them again."""
    draft = seen["llama"][0].copy()
    node = next(n for n in draft.products() if ".mlp.gate" in n.input[1])
    norm = draft.writer(node.input[0])
    assert norm is not None
    outlier = np.ones(64, dtype=np.float32)
    outlier[::16] = 50
    draft.weights[norm.input[2]] = draft.weights[norm.input[2]] * outlier
    draft.weights[node.input[1]] = draft.weights[node.input[1]] / outlier[:, None]
    expected = logits(parents["llama"], draft, texts[0])
    observed = dict(seen["llama"][1])
    observed[node.input[0]] = observed[node.input[0]].scaled(1 / outlier)
    plan = {n.output[0]: kernel for n in draft.products() if n.output[0] != "logits"}
    kl = {}
    for name in ("plain", "smooth"):
        tried = draft.copy()
        if name == "smooth":
            smooth(tried, observed, KERNELS[kernel].grid)
        assign(tried, plan)
        kl[name] = mean_kl(expected, logits(parents["llama"], tried, texts[0]))
    # in 4 bits more of the error is the weights' own
    assert kl["smooth"] < (0.6 if kernel == "block4" else 0.5) * kl["plain"]


def test_observing_again_finds_what_was_said(
    parents: dict[str, Bundle],
    seen: dict[str, Seen],
    texts: list[Array],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`observe` of the smoothed graph, against what `smooth` returned of the one before."""
    draft, observed = seen["llama"]
    changed = draft.copy()
    after = smooth(changed, observed, GRID)
    watched = changed.copy()
    made = {value.name for value in watched.graph.output}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in sorted(set(observed) - made)
    )
    monkeypatch.setattr(calibrate, "_observing", lambda *_: opened(watched))
    for name, found in observe(parents["llama"], changed, texts).items():
        np.testing.assert_allclose(found.largest, after[name].largest, rtol=2e-3, atol=1e-5)
        size = np.abs(after[name].gram).max()
        np.testing.assert_allclose(found.gram, after[name].gram, atol=1e-3 * size)
