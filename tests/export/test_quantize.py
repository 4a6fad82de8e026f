"""Every scheme on tiny models: how near, how small, what the files hold, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kdexport.bundle import (
    LEDGER,
    Bundle,
    commit_bundle,
    copy_companions,
    staged_bundle,
    verify_bundle,
)
from kdexport.errors import InputError
from kdexport.export import quantize as module
from kdexport.export.bundles import export_bundle
from kdexport.export.calibrate import calibration_texts, written_texts
from kdexport.export.draft import Draft, load_draft, save_drafts
from kdexport.export.kernels import KERNELS
from kdexport.export.parity import mean_kl, token_by_token
from kdexport.export.quantize import N_JUDGING, SCHEMES, Wishes, quantize_bundle
from kdexport.export.standard import STANDARD, standard_graph
from kdexport.runtime.generate import generate
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.session import open_session
from kdexport.runtime.text import load_text
from tests.export.drafts import Array
from tests.models import make_family

FAMILIES = ("llama", "llama-untied", "gpt2")
# Nats, of random weights of two layers on text: about twice what was seen. int4 has 16 steps a
# weight, and models this narrow have nothing that makes up for another's error.
MOST_KL = {"int8": 0.008, "int8-portable": 0.008, "int8-block": 0.005, "int4": 0.4}
# Bytes a weight of the products and tables, with the scales of their narrow rows.
MOST_BYTES = {"int8": 1.09, "int8-portable": 1.09, "int8-block": 1.07, "int4": 0.72}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@pytest.fixture
def made(quantized: Callable[..., Bundle]) -> Callable[[str, str], Bundle]:
    """A family in a scheme."""
    return quantized


def draft_of(bundle: Bundle) -> Draft:
    return load_draft(bundle.file(bundle.manifest.graphs.decode))


def kl_on(parent: Bundle, bundle: Bundle, texts: list[Array]) -> float:
    """KL(parent ‖ bundle), mean over texts read at once."""
    whole, session = open_session(parent), open_session(bundle)
    found = [mean_kl(whole.score(t.tolist()).copy(), session.score(t.tolist())) for t in texts]
    return float(np.mean(found))


@every_family
@every_scheme
def test_it_stays_near(
    parents: dict[str, Bundle],
    made: Callable[[str, str], Bundle],
    texts: list[Array],
    family: str,
    scheme: str,
) -> None:
    parent, bundle = parents[family], made(family, scheme)
    assert kl_on(parent, bundle, texts[:2]) < MOST_KL[scheme]
    ids = texts[2][:40]
    expected = open_session(parent).score(ids.tolist())
    assert mean_kl(expected, token_by_token(open_session(bundle), ids)) < MOST_KL[scheme]
    parity = bundle.manifest.parity
    assert parity is not None and 0 < parity.max_kl < 1.5 * MOST_KL[scheme]  # of random tokens


@every_family
@every_scheme
def test_it_is_small(made: Callable[[str, str], Bundle], family: str, scheme: str) -> None:
    bundle = made(family, scheme)
    weights = draft_of(bundle).weights
    wide = {n: w for n, w in weights.items() if w.ndim > 1 and "rotary" not in n and "wpe" not in n}
    scales = [n for n in wide if n.endswith(".scales.half")]
    assert {wide[name].dtype for name in scales} <= {np.dtype("f2")}
    assert {w.dtype for n, w in wide.items() if n not in scales} == {np.dtype("u1")}
    rest = [w for n, w in weights.items() if n not in wide and w.dtype == np.float32]
    still_float = sum(w.nbytes for n, w in weights.items() if "rotary" in n or "wpe" in n)
    size = bundle.file(bundle.manifest.weights).stat().st_size
    norms = sum(w.nbytes for w in rest if w.ndim == 1 and w.size <= 64)
    padding = 64 * len(weights)
    n_weights = bundle.manifest.model.n_parameters - still_float / 4 * ("gpt2" in family)
    assert size - still_float - norms - padding <= MOST_BYTES[scheme] * n_weights


@every_scheme
def test_every_scheme_evens_activations_out(
    parents: dict[str, Bundle], made: Callable[[str, str], Bundle], scheme: str
) -> None:
    """In norms that took the difference."""
    before, after = draft_of(parents["llama"]).weights, draft_of(made("llama", scheme)).weights
    norms = [name for name in before if name.endswith("layernorm.weight")]
    assert norms
    assert any(not np.array_equal(before[name], after[name]) for name in norms)


@every_family
@every_scheme
def test_it_opens_and_writes(
    parents: dict[str, Bundle], made: Callable[[str, str], Bundle], family: str, scheme: str
) -> None:
    bundle, parent = made(family, scheme), parents[family]
    assert verify_bundle(bundle.path) == []
    manifest = bundle.manifest
    assert manifest.scheme == scheme
    assert manifest.parent is not None
    assert manifest.parent.name == parent.manifest.name
    assert manifest.name == f"{manifest.parent.name}-{manifest.scheme}"  # a server tells by it
    assert manifest.parent.manifest_sha256 == parent.manifest_sha256
    assert LEDGER not in manifest.files
    session, codec = open_session(bundle), load_text(bundle)
    prompt = codec.encode("Fresh bread")
    first, second = (
        [
            s.token_id
            for s in generate(session, prompt, make_sampler(temperature=0), max_new_tokens=8)
        ]
        for _ in range(2)
    )
    assert first == second and first


@every_family
@every_scheme
def test_its_graphs_share_every_weight(
    made: Callable[[str, str], Bundle], family: str, scheme: str
) -> None:
    bundle = made(family, scheme)
    places: list[set[str]] = []
    graphs = bundle.manifest.graphs
    for name in (graphs.decode, STANDARD, graphs.prefill):
        graph = onnx.load(bundle.file(name), load_external_data=False).graph
        weights = [t for t in graph.initializer if not is_of_cache(t.name)]
        places.append({str(t.external_data[1:]) for t in weights if t.external_data})
    assert places[0] == places[1] == places[2] and len(places[0]) > 10


def is_of_cache(name: str) -> bool:
    """A scale of int8 keys or values, which the graph for many tokens alone has."""
    return name.startswith("past_key_values.") and name.endswith(".scale")


@every_scheme
def test_a_table_is_there_once_where_the_head_shares_it(
    made: Callable[[str, str], Bundle], scheme: str
) -> None:
    for family, n_tables in (("llama", 1), ("gpt2", 1), ("llama-untied", 2)):
        bundle = made(family, scheme)
        path = bundle.file(bundle.manifest.graphs.decode)
        graph = onnx.load(path, load_external_data=False).graph
        places = {t.name: str(t.external_data) for t in graph.initializer}
        (look_up,) = [n for n in graph.node if n.op_type == "GatherBlockQuantized"]
        (head,) = [n for n in graph.node if list(n.output) == ["logits"]]
        assert head.op_type == "MatMulNBits"
        assert len({places[look_up.input[0]], places[head.input[1]]}) == n_tables


def kinds_of(bundle: Bundle) -> set[str]:
    return {node.op_type for node in draft_of(bundle).graph.node}


def test_what_a_scheme_s_products_are(made: Callable[[str, str], Bundle]) -> None:
    assert "MatMulIntegerToFloat" in kinds_of(made("llama", "int8-portable"))
    for scheme, bits in (("int8-block", 8), ("int4", 4)):
        draft = draft_of(made("llama", scheme))
        body = [
            n for n in draft.graph.node if n.op_type == "MatMulNBits" and n.output[0] != "logits"
        ]
        facts = [{a.name: a.i for a in node.attribute} for node in body]
        assert {(f["bits"], f["block_size"], f["accuracy_level"]) for f in facts} == {(bits, 32, 4)}
        assert "MatMul" not in {n.op_type for n in draft.graph.node}


@pytest.mark.parametrize(
    ("features", "body"),
    [(["avx2", "vnni", "amx"], "column8"), (["avx2", "vnni"], "wide8"), (["avx2"], "rows8u")],
)
def test_int8_is_what_this_cpu_is_quick_at(
    monkeypatch: pytest.MonkeyPatch, features: list[str], body: str
) -> None:
    monkeypatch.setattr(module, "cpu_features", lambda: features)
    assert SCHEMES["int8"].body() == body
    assert SCHEMES["int8-portable"].body() == "rows8u"  # wherever it is made


def test_an_unknown_scheme_is_refused_with_the_list(
    parents: dict[str, Bundle], made: Callable[[str, str], Bundle], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="unknown scheme 'int3'") as caught:
        quantize_bundle(parents["llama"], "int3", tmp_path / "q")
    assert caught.value.remedy == "use int8, int8-portable, int8-block, int4"
    with pytest.raises(InputError, match=r"is quantized already \(int4\)"):
        quantize_bundle(made("llama", "int4"), "int8", tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


def changed(parent: Bundle, out: Path, part: str, value: float) -> Bundle:
    """A bundle whose hashes are right and one of whose weights is not."""
    draft = draft_of(parent)
    name = next(name for name in draft.weights if part in name)
    draft.weights[name] = draft.weights[name].copy()
    draft.weights[name].flat[7] = value
    graphs = {parent.manifest.graphs.decode: draft, STANDARD: standard_graph(draft)}
    with staged_bundle(out) as staging:
        save_drafts(graphs, staging, parent.manifest.weights)
        copy_companions(parent, staging)
        return commit_bundle(staging, out, parent.manifest)


@every_scheme
@pytest.mark.parametrize("part", ["down_proj", "embed_tokens"])
def test_weights_that_are_not_finite_are_named(
    parents: dict[str, Bundle], tmp_path: Path, part: str, scheme: str
) -> None:
    parent = changed(parents["llama"], tmp_path / "b", part, float("nan"))
    with pytest.raises(InputError, match=f"the weights of .*{part}.* are not all finite") as caught:
        quantize_bundle(parent, scheme, tmp_path / "out" / "q")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "q").exists()
    assert [path.name for path in tmp_path.rglob("*.partial")] == []


@pytest.mark.parametrize(
    ("sizes", "schemes", "name"),
    [
        (
            {"hidden_size": 48, "head_dim": 16},
            ("int8-portable", "int4"),
            "(lm_head|q_proj).*has 48",
        ),
        ({"intermediate_size": 100}, ("int8-block", "int4"), "down_proj.* has 100"),
    ],
)
def test_rows_that_end_within_a_block_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sizes: dict[str, int],
    schemes: tuple[str, ...],
    name: str,
) -> None:
    parent = export_bundle(
        make_family(tmp_path / "m", "llama-biases", **sizes), tmp_path / "b", name="x"
    )
    monkeypatch.setattr(module, "observe", None)  # refused before anything that takes long
    monkeypatch.setattr(module, "written_texts", None)
    for scheme in schemes:
        with pytest.raises(InputError, match=f"{name} rows, which blocks of 32 do not") as caught:
            quantize_bundle(parent, scheme, tmp_path / "out" / "q")
        assert "\n" not in str(caught.value) and "float32" in caught.value.remedy
    assert not (tmp_path / "out" / "q").exists()


def test_inner_widths_that_no_block_divides_have_a_scheme(tmp_path: Path) -> None:
    source = make_family(tmp_path / "m", "llama-biases", intermediate_size=100)
    parent = export_bundle(source, tmp_path / "b", name="x")
    bundle = quantize_bundle(parent, "int8-portable", tmp_path / "q", Wishes(max_kl=0.0005))
    ledger = json.loads(bundle.file(LEDGER).read_text("utf-8"))
    kernels = {e["kernel"] for e in ledger if "down_proj" in e["product"]}
    assert kernels <= {"rows8u", "float32"}


def test_texts_of_the_user_lower_the_error_on_them(
    parents: dict[str, Bundle], made: Callable[[str, str], Bundle], tmp_path: Path
) -> None:
    file = tmp_path / "t.txt"
    file.write_text("".join(f"Buy {n} loaves, get {n % 7} free.\n" for n in range(300)), "utf-8")
    parent = parents["llama"]
    bundle = quantize_bundle(parent, "int8-portable", tmp_path / "q", Wishes(calibrate=file))
    pieces = calibration_texts(parent, load_text(parent), file)[:4]
    before = kl_on(parent, made("llama", "int8-portable"), pieces)
    assert kl_on(parent, bundle, pieces) < 0.9 * before


@pytest.mark.parametrize("name", ["none.txt", "broken.jsonl"])
def test_texts_that_cannot_be_read_leave_nothing(
    parents: dict[str, Bundle], tmp_path: Path, name: str
) -> None:
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(InputError, match=name):
        quantize_bundle(parents["llama"], "int8", tmp_path / "q", Wishes(calibrate=tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == ["broken.jsonl"]


def graph_facts(draft: Draft, product: str) -> dict[str, Any]:
    """Kernel, bits and bytes of a product, read off its graph."""
    node = draft.writer(product)
    assert node is not None
    if node.op_type == "MatMul":
        return {"bits": 32, "n_bytes": draft.weights[node.input[1]].nbytes}
    if node.op_type == "Mul":  # by the rows' largest values
        node = draft.writer(node.input[0])
        assert node is not None and node.op_type == "MatMulIntegerToFloat"
        own = [name for name in node.input if not name.startswith("kdexport.")]
        bits = 8
    else:
        bits = next(a.i for a in node.attribute if a.name == "bits")
        own = [node.input[1], f"{node.input[2]}.half"]
    return {
        "bits": bits,
        "n_bytes": sum(draft.weights[n].nbytes for n in own if n in draft.weights),
    }


@pytest.mark.parametrize(("scheme", "max_kl"), [("int4", 0.02), ("int8-portable", 0.0015)])
def test_a_budget_is_kept_and_its_ledger_true(
    parents: dict[str, Bundle],
    made: Callable[[str, str], Bundle],
    tmp_path: Path,
    scheme: str,
    max_kl: float,
) -> None:
    parent = parents["llama"]
    bundle = quantize_bundle(parent, scheme, tmp_path / "q", Wishes(max_kl=max_kl))
    # The model's own texts come out the same again; the last were kept back.
    held_out = written_texts(parent, load_text(parent))[-N_JUDGING:]
    assert kl_on(parent, bundle, held_out) <= 1.02 * max_kl  # threads sum in another order
    assert kl_on(parent, made("llama", scheme), held_out) > max_kl
    ledger = json.loads(bundle.file(LEDGER).read_text("utf-8"))
    draft = draft_of(bundle)
    assert [e["product"] for e in ledger] == [n.output[0] for n in draft_of(parent).products()]
    for entry in ledger:
        facts = graph_facts(draft, entry["product"])
        assert {name: entry[name] for name in facts} == facts
        assert entry["bits"] == (
            32 if entry["kernel"] == "float32" else KERNELS[entry["kernel"]].bits
        )
        assert 0 <= entry["kl"] <= max_kl
    cheapest = {e["product"]: SCHEMES[scheme].body() for e in ledger} | {"logits": "wide8"}
    assert any(entry["kernel"] != cheapest[entry["product"]] for entry in ledger)
    assert verify_bundle(bundle.path) == [] and LEDGER in bundle.manifest.files


def test_a_mix_is_judged_on_texts_that_were_not_observed(
    parents: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe, choose_mix = module.observe, module.choose_mix
    texts: dict[str, list[bytes]] = {}

    def observing(bundle: Bundle, draft: Draft, seen: list[Array], *rest: Any) -> Any:
        texts["seen"] = [ids.tobytes() for ids in seen]
        return observe(bundle, draft, seen, *rest)

    def choosing(*given: Any) -> Any:
        texts["judging"] = [ids.tobytes() for ids in given[4]]
        return choose_mix(*given)

    monkeypatch.setattr(module, "observe", observing)
    monkeypatch.setattr(module, "choose_mix", choosing)
    quantize_bundle(parents["llama"], "int8", tmp_path / "q", Wishes(max_kl=1.0))
    assert len(texts["judging"]) == N_JUDGING and len(texts["seen"]) > 10
    assert not set(texts["seen"]) & set(texts["judging"])


def test_two_texts_suffice_for_a_budget(parents: dict[str, Bundle], tmp_path: Path) -> None:
    """One to observe, one to judge on: as few as a file of the least length is cut into."""
    parent, file = parents["llama"], tmp_path / "t.txt"
    codec = load_text(parent)
    line = "Fresh bread from our oven, 20% off this spring! "
    file.write_text(line * (-(-512 // len(codec.encode(line))) + 1), "utf-8")
    assert len(calibration_texts(parent, codec, file)) == 2
    wishes = Wishes(calibrate=file, max_kl=0.05)
    assert LEDGER in quantize_bundle(parent, "int8", tmp_path / "q", wishes).manifest.files


def test_a_budget_that_cannot_be_leaves_nothing(parents: dict[str, Bundle], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no mix of kernels keeps to a KL of -1 nats"):
        quantize_bundle(parents["llama"], "int8", tmp_path / "q", Wishes(max_kl=-1.0))
    assert list(tmp_path.iterdir()) == []
