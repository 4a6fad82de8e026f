"""Every family computes what torch computes, in every scheme, or is refused by its name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdexport.bundle import Bundle
from kdexport.errors import InputError, ParityError
from kdexport.export import graph as graph_module
from kdexport.export.bundles import export_bundle
from kdexport.export.graph import check_family
from kdexport.export.parity import mean_kl, token_by_token
from kdexport.export.quantize import SCHEMES, quantize_bundle
from kdexport.runtime.session import open_session
from kdexport.train.model import load_model
from tests.models import FAMILIES, make_family

LONG = 120  # tokens: past the windows of 16, and past the 64 that scaled rotations begin at


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("families"), dict[str, Path]()

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = make_family(root / name, name)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def bundle_of(
    tmp_path_factory: pytest.TempPathFactory, folder_of: Callable[[str], Path]
) -> Callable[[str], Bundle]:
    root, made = tmp_path_factory.mktemp("bundles"), dict[str, Bundle]()

    def bundle(name: str) -> Bundle:
        if name not in made:
            made[name] = export_bundle(folder_of(name), root / name, name=name)
        return made[name]

    return bundle


def long_ids(bundle: Bundle) -> np.ndarray:
    facts = bundle.manifest.model
    n = min(LONG, facts.max_length)
    return np.random.default_rng(1).integers(0, facts.vocab_size, n, dtype=np.int64)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_torchs(
    folder_of: Callable[[str], Path], bundle_of: Callable[[str], Bundle], family: str
) -> None:
    bundle = bundle_of(family)
    # Prefill, decode and a batch that torch pads on the left: check_parity did them all.
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.max_abs_logit_diff < 1e-4  # float32, another order of summing
    ids = long_ids(bundle)
    model = load_model(folder_of(family))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    found = open_session(bundle, n_threads=1).score(ids.tolist())
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert bundle.manifest.model.n_parameters == model.num_parameters()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_schemes_stay_near(
    bundle_of: Callable[[str], Bundle], family: str, scheme: str, tmp_path: Path
) -> None:
    parent = bundle_of(family)
    ids = long_ids(parent)
    expected = open_session(parent, n_threads=1).score(ids.tolist()).copy()
    session = open_session(quantize_bundle(parent, scheme, tmp_path / "q"), n_threads=1)
    worst = KL_OF_A_TINY_MODEL.get(scheme, 0.01)
    assert mean_kl(expected, session.score(ids.tolist())) < worst
    last = token_by_token(session, ids, len(ids) - 8)
    assert mean_kl(expected[-8:], last) < worst


KL_OF_A_TINY_MODEL = {"int4": 1.0}  # nats; random weights of two layers; other schemes 0.01


@pytest.mark.parametrize("family", ["qwen2-windows", "gemma3", "llama-dynamic"])
def test_parity_sees_what_the_builder_gets_wrong(
    folder_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(graph_module, "own_attention", lambda *_: None)
    with pytest.raises(ParityError):
        export_bundle(folder_of(family), tmp_path / "b", name="x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["mistral", "qwen2-windows", "phi3"])
def test_parity_sees_a_window_that_is_off_by_one(
    folder_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    tmp_path: Path,
) -> None:
    real = graph_module.own_attention

    def wider(draft: Any, layers: Any) -> None:
        real(draft, layers)
        for node in draft.graph.node:
            for attribute in node.attribute:
                if attribute.name == "local_window_size" and attribute.i > 0:
                    attribute.i += 1

    monkeypatch.setattr(graph_module, "own_attention", wider)
    with pytest.raises(ParityError):
        export_bundle(folder_of(family), tmp_path / "b", name="x")


def test_nothing_of_this_machine_is_in_a_graph(bundle_of: Callable[[str], Bundle]) -> None:
    bundle = bundle_of("smollm2")
    graph = onnx.load(bundle.file(bundle.manifest.graphs.decode), load_external_data=False).graph
    assert graph.name == "model"


def test_longrope_ends_where_its_factors_change(bundle_of: Callable[[str], Bundle]) -> None:
    bundle = bundle_of("phi3-longrope")
    assert bundle.manifest.model.max_length == 64  # of 256: beyond, other factors rotate all keys
    with pytest.raises(InputError, match="65 tokens are beyond the model's 64"):
        open_session(bundle, n_threads=1).score([5] * 65)


def test_older_names_of_rotary_scaling_are_understood(
    folder_of: Callable[[str], Path], bundle_of: Callable[[str], Bundle], tmp_path: Path
) -> None:
    new = folder_of("phi3-longrope")
    folder = tmp_path / "old"
    folder.mkdir()
    for file in new.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text("utf-8"))
    factors = config.pop("rope_parameters")
    config["rope_scaling"] = {
        "type": "longrope",
        "short_factor": factors["short_factor"],
        "long_factor": factors["long_factor"],
    }
    config["rope_theta"] = factors["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    found = open_session(export_bundle(folder, tmp_path / "b", name="old"), n_threads=1)
    ids = long_ids(bundle_of("phi3-longrope")).tolist()
    expected = open_session(bundle_of("phi3-longrope"), n_threads=1).score(ids)
    np.testing.assert_array_equal(found.score(ids), expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "t5"}, "t5 models cannot be exported: they have an encoder"),
        ({"model_type": "whisper"}, "whisper models cannot be exported: they have an encoder"),
        ({"model_type": "llava"}, "llava models cannot be exported: they read images too"),
        ({"model_type": "gemma3"}, "gemma3 models cannot be exported: they read images too"),
        ({"model_type": "mamba"}, "mamba models cannot be exported: "),
        ({"model_type": "jamba"}, "jamba models cannot be exported: they have layers of "),
        ({"model_type": "qwen3_next"}, "qwen3_next models cannot be exported: they have layers"),
        ({"model_type": "bloom"}, "bloom models cannot be exported: "),
        (
            {"model_type": "gemma3_text", "final_logit_softcapping": 30.0},
            r"gemma3_text models cannot be exported: their logits are capped",
        ),
        ({"model_type": "blenderbot-small"}, "blenderbot-small models cannot be exported: "),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(InputError, match=message) as caught:
        export_bundle(folder, tmp_path / "b", name="x")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    with pytest.raises(InputError, match=message):
        check_family(folder)


def test_rotations_that_onnx_runtime_cannot_do_are_refused(tmp_path: Path) -> None:
    folder = make_family(tmp_path / "m", "smollm2", head_dim=24)
    with pytest.raises(InputError, match="24 channels of a head are rotated") as caught:
        export_bundle(folder, tmp_path / "b", name="x")
    assert caught.value.remedy.endswith("multiple of 16")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    folder = make_family(tmp_path / "m", "smollm2")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    message = r"model\.layers\.1\.mlp\.up_proj\.weight has values that are not finite"
    with pytest.raises(InputError, match=message):
        export_bundle(folder, tmp_path / "b", name="x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_weights_that_are_quantized_already_are_refused(tmp_path: Path) -> None:
    folder = make_family(tmp_path / "m", "smollm2")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(InputError, match=r"quantized already \(gptq\)"):
        export_bundle(folder, tmp_path / "b", name="x")
