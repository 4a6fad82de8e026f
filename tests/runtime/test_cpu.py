"""A bundle on a CPU of another class than it was made on: right, slow or wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdexport.bundle import Bundle, CpuFacts
from kdexport.errors import InputError
from kdexport.export.quantize import SCHEMES, Scheme, quantize_bundle
from kdexport.runtime import cpu
from kdexport.runtime.advice import Probe
from kdexport.runtime.cpu import CLASSES, cpu_class, suit_cpu, suits_many_tokens
from kdexport.runtime.session import open_graph, open_session


def made(bundle: Bundle, made_on: str, *kernels: str) -> Bundle:
    facts = CpuFacts(made_on=made_on, kernels=list(kernels))
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"cpu": facts}), "")


def suited(bundle: Bundle, *features: str) -> tuple[dict[str, str], list[str]]:
    lines: list[str] = []
    return dict(suit_cpu(bundle, lines.append, features)), lines


@pytest.fixture(scope="module")
def signed_bundle(llama_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """int8 with signed weights, which no scheme of its own chooses at present."""
    out: Path = tmp_path_factory.mktemp("signed") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCHEMES, "int8", Scheme("signed", lambda: "rows8"))
        return quantize_bundle(llama_bundle, "int8", out)


@pytest.mark.parametrize(
    ("features", "name"),
    [
        (["avx2", "avx512", "vnni", "bf16"], "vnni"),
        (["avx2", "avx512"], "avx512"),
        (["avx2"], "avx2"),
        (["neon", "dotprod", "i8mm"], "i8mm"),
        (["neon"], "neon"),
        ([], "unknown"),
    ],
)
def test_the_class_is_the_best_of_the_features(features: list[str], name: str) -> None:
    assert cpu_class(features) == name


def test_only_amx_has_a_graph_of_its_own_for_many_tokens(llama_bundle: Bundle) -> None:
    manifest = llama_bundle.manifest
    assert suits_many_tokens(manifest, ["avx2", "vnni", "amx"])
    assert not suits_many_tokens(manifest, ["avx2", "avx512", "vnni"])
    assert not suits_many_tokens(manifest, [])


@pytest.mark.parametrize("value", [None, 0.3])  # not there, and wrong
def test_that_graph_is_left_where_its_attention_is_not_right(
    llama_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, value: float | None
) -> None:
    found = Probe(name="attention8", value=value, unit="share", verdict="wrong", why="it is")
    monkeypatch.setattr("kdexport.runtime.attention_probe.probe_attention", lambda: found)
    manifest = llama_bundle.manifest.model_copy(update={"prefill_kv_cache": "int8"})
    assert not suits_many_tokens(manifest, ["amx"])
    assert suits_many_tokens(llama_bundle.manifest, ["amx"])


def test_blocks_of_vnni_read_slowly_without(llama_bundle: Bundle) -> None:
    switches, lines = suited(made(llama_bundle, "vnni", "block8"), "avx2")
    assert not switches
    assert len(lines) == 1 and "\n" not in lines[0]
    assert str(llama_bundle.path) in lines[0] and "--scheme int8" in lines[0]
    assert "reads prompts more slowly" in lines[0]


@pytest.mark.parametrize(
    ("made_on", "kernels", "features"),
    [
        ("vnni", ["block8"], ["avx2", "avx512", "vnni"]),
        ("avx2", ["block4"], ["avx2"]),  # chosen there
        ("vnni", ["rows8u"], ["avx2"]),
        ("avx2", ["rows8u", "block8"], ["avx2"]),
        ("avx2", ["rows8u"], ["neon"]),
        ("avx2", ["rows8u"], ["avx2", "avx512", "vnni"]),
        ("vnni", ["block4"], []),
        ("vnni", [], ["avx2"]),
    ],
)
def test_what_is_as_good_here_is_not_told(
    llama_bundle: Bundle, made_on: str, kernels: list[str], features: list[str]
) -> None:
    assert suited(made(llama_bundle, made_on, *kernels), *features) == ({}, [])


@pytest.mark.parametrize("made_on", CLASSES)
def test_signed_weights_are_made_unsigned_where_sums_are_cut(
    llama_bundle: Bundle, made_on: str
) -> None:
    bundle = made(llama_bundle, made_on, "rows8")
    for features in (["avx2"], ["avx2", "avx512"], []):
        switches, lines = suited(bundle, *features)
        assert switches == {"session.x64quantprecision": "1"} and not lines
    for features in (["avx2", "avx512", "vnni"], ["neon"]):
        assert suited(bundle, *features) == ({}, [])


def test_signed_weights_that_stay_wrong_are_refused(
    llama_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(kernel: str, **_: Any) -> Probe:
        return Probe(name=kernel, value=0.4, unit="share", verdict="wrong", why="cut")

    monkeypatch.setattr("kdexport.runtime.probes.probe_kernel", wrong)
    with pytest.raises(InputError, match="signed products are wrong here") as caught:
        suited(made(llama_bundle, "vnni", "rows8"), "avx2")
    assert "--scheme int8" in caught.value.remedy and "\n" not in str(caught.value)


@pytest.mark.parametrize(("error", "state"), [(None, "lacks"), (0.4, "computes wrongly here")])
def test_attention_in_8_bits_that_is_not_to_be_had_is_one_line(
    kv8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: float | None, state: str
) -> None:
    wrong = Probe(name="attention8: error", value=error, unit="share", verdict="wrong", why="")
    monkeypatch.setattr("kdexport.runtime.attention_probe.probe_attention", lambda: wrong)
    with pytest.raises(InputError, match=state) as caught:
        open_session(kv8_bundle)
    assert "--kv-cache float32" in caught.value.remedy and "\n" not in str(caught.value)


def test_the_switch_makes_the_products_unsigned(signed_bundle: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime's own word for it: the graph that it makes of ours."""
    import onnx
    import onnxruntime

    def weights(switches: dict[str, str]) -> set[int]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        for name, value in switches.items():
            options.add_session_config_entry(name, value)
        onnxruntime.InferenceSession(
            signed_bundle.file(signed_bundle.manifest.graphs.decode), options
        )
        graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        return {types[n.input[1]] for n in graph.node if n.op_type == "MatMulIntegerToFloat"}

    assert weights({}) == {onnx.TensorProto.INT8}
    assert weights(dict(cpu.AS_UNSIGNED)) == {onnx.TensorProto.UINT8}


def test_with_the_switch_a_bundle_writes_the_same(
    signed_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Integer sums are exact either way, where they are not cut: the same bits with VNNI."""
    facts = signed_bundle.manifest.cpu
    assert facts is not None and facts.kernels == ["rows8"]
    given: list[dict[str, str]] = []

    def opened(path: Path, n: int | None, switches: Any) -> Any:
        given.append(dict(switches))
        return open_graph(path, n, switches)

    monkeypatch.setattr("kdexport.runtime.session.open_graph", opened)
    monkeypatch.setattr("kdexport.runtime.cpu.cpu_class", lambda features: "vnni")
    plain = open_session(signed_bundle, n_threads=1).score(range(5, 40)).copy()
    monkeypatch.setattr("kdexport.runtime.cpu.cpu_class", lambda features: "avx2")
    unsigned = open_session(signed_bundle, n_threads=1).score(range(5, 40)).copy()
    assert given == [{}, dict(cpu.AS_UNSIGNED)]
    from kdexport.runtime.probes import probe_kernel

    if probe_kernel("dynamic-signed").verdict == "ok":  # elsewhere what is cut is no reference
        np.testing.assert_array_equal(unsigned, plain)


@pytest.mark.parametrize(
    ("scheme", "kernels"),
    [("int8-portable", ["rows8u"]), ("int8-block", ["block8"]), ("int4", ["block4"])],
)
def test_the_manifest_tells_what_was_chosen(
    llama_bundle: Bundle, scheme: str, kernels: list[str], tmp_path: Path
) -> None:
    from kdexport.system.machine import machine_facts

    facts = quantize_bundle(llama_bundle, scheme, tmp_path / "bundle").manifest.cpu
    assert facts == CpuFacts(made_on=cpu_class(machine_facts().features), kernels=kernels)


def test_a_slow_bundle_is_told_by_generate(
    llama_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from kdexport.commands.main import cli

    monkeypatch.setattr(
        "kdexport.runtime.session.suit_cpu", lambda bundle, warn: warn(f"{bundle.path}: slow") or {}
    )
    arguments = ["generate", str(llama_bundle.path), "-p", "x", "-n", "2"]
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert shown.exit_code == 0 and shown.stderr == f"{llama_bundle.path}: slow\n"
