"""A bundle computes what its checkpoint computes, or does not come to be."""

import errno
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from kdexport.bundle import WEIGHTS, open_bundle, verify_bundle
from kdexport.errors import InputError, ParityError
from kdexport.export import bundles as bundles_module
from kdexport.export import quantize as quantize_module
from kdexport.export.bundles import export_bundle
from kdexport.export.draft import Draft
from kdexport.export.quantize import quantize_bundle
from kdexport.export.text import chat_template
from kdexport.runtime.session import open_session
from kdexport.runtime.text import load_text
from kdexport.train.model import load_model
from tests.models import CHAT_TEMPLATE, make_gpt2

FAMILIES = ("llama", "llama-untied", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_torchs(checkpoints: dict[str, Path], family: str, tmp_path: Path) -> None:
    bundle = export_bundle(checkpoints[family], tmp_path / "b", name=family)
    ids = torch.arange(4, 60)[None]
    with torch.no_grad():
        expected = load_model(checkpoints[family])(ids).logits[0].numpy()
    found = open_session(bundle, n_threads=1).score(ids[0].tolist())
    np.testing.assert_allclose(found, expected, atol=1e-4)  # float32, another order of summing
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.max_abs_logit_diff < 1e-4
    assert verify_bundle(bundle.path) == []
    n_parameters = load_model(checkpoints[family]).num_parameters()
    assert bundle.manifest.model.n_parameters == n_parameters


def test_a_changed_weight_fails_and_leaves_nothing(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = bundles_module.BACKENDS["mobius"]

    def wrong(checkpoint: Path) -> Draft:
        draft = maker.build_graph(checkpoint)
        name = next(n for n, w in draft.weights.items() if w.ndim == 2 and w.shape[0] == 64)
        draft.weights[name] = draft.weights[name] * 1.01
        return draft

    changed = {"mobius": replace(maker, build_graph=wrong)}
    monkeypatch.setattr(bundles_module, "BACKENDS", changed)
    with pytest.raises(ParityError, match="parity of prefill"):
        export_bundle(checkpoints["llama"], tmp_path / "b", name="x")
    assert list(tmp_path.iterdir()) == []


def test_an_older_bundle_survives_a_failed_export(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_bundle(checkpoints["llama"], tmp_path / "b", name="old")

    def fails(*_: object) -> None:
        raise ParityError("no")

    monkeypatch.setattr(bundles_module, "check_parity", fails)
    with pytest.raises(ParityError):
        export_bundle(checkpoints["llama"], tmp_path / "b", name="new")
    assert open_bundle(tmp_path / "b").manifest.name == "old"
    assert verify_bundle(tmp_path / "b") == []


def test_a_tokenizer_that_cuts_otherwise_fails(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdexport.runtime.text import TextCodec

    monkeypatch.setattr(TextCodec, "render_chat", lambda self, messages: "something else")
    with pytest.raises(ParityError, match="chat template"):
        export_bundle(checkpoints["llama"], tmp_path / "b", name="x")


def test_an_unknown_family_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(checkpoints["llama"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "blenderbot"}))
    with pytest.raises(InputError, match="blenderbot"):
        export_bundle(folder, tmp_path / "b", name="x")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("change", [{"model_type": "wizard9"}, {"hidden_size": "wide"}])
def test_a_config_that_transformers_cannot_read_is_one_line(
    checkpoints: dict[str, Path], tmp_path: Path, change: dict[str, str]
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(checkpoints["llama"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=r"cannot read config\.json") as caught:
        export_bundle(folder, tmp_path / "b", name="x")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b").exists()


TOOLS = {"name": "tools", "template": "{{ messages[0]['content'] }}"}


@pytest.mark.parametrize(
    ("stated", "kept"),
    [
        (CHAT_TEMPLATE, CHAT_TEMPLATE),
        ([TOOLS, {"name": "default", "template": CHAT_TEMPLATE}], CHAT_TEMPLATE),
        ([TOOLS], None),
        (None, None),
    ],
)
def test_a_template_in_the_tokenizer_s_configuration_is_taken(
    checkpoints: dict[str, Path], tmp_path: Path, stated: object, kept: str | None
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(checkpoints["llama"], folder)
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": stated}))
    bundle = export_bundle(folder, tmp_path / "b", name="x")
    assert load_text(bundle).template == kept == chat_template(folder)
    assert verify_bundle(bundle.path) == []


def changed(source: Path, target: Path, name: str, content: object) -> Path:
    """A copy of a model's folder in which one file has another content; a dict changes values."""
    shutil.copytree(source, target)
    file = target / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(file.read_text()) | content)
    file.write_bytes(content if isinstance(content, bytes) else str(content).encode())
    return target


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        *(
            (name, content, "is not JSON|is not a JSON object|cannot load the tokenizer")
            for name in ("generation_config.json", "tokenizer_config.json")
            for content in ("", '{"a": ', "[]", b"\xff\x00")
        ),
        ("special_tokens_map.json", "[]", "cannot load the tokenizer"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_ids"),
        ("generation_config.json", '{"eos_token_id": [-1]}', "eos_token_ids"),
        ("config.json", {"num_attention_heads": 0}, "m/config.json: cannot be loaded"),
        ("config.json", {"max_position_embeddings": 0}, "max_length"),
        ("config.json", {"dtype": "nonsense"}, "nonsense"),
        ("config.json", {"vocab_size": 300}, "token 319, the model a vocabulary of 300"),
        ("chat_template.jinja", b"caf\xff", "cannot load the tokenizer"),
        ("chat_template.jinja", "{{ 1/0 }}", "division by zero"),
        ("chat_template.jinja", "{{ raise_exception('no\n\nway') }}", "m: .*no.*way"),
        ("chat_template.jinja", "{% if true %}", "Unexpected end of template"),
    ],
)
def test_a_broken_folder_is_one_line_and_nothing_is_written(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, content: object, reason: str
) -> None:
    folder = changed(checkpoints["llama"], tmp_path / "m", name, content)
    with pytest.raises(InputError, match=reason) as caught:
        export_bundle(folder, tmp_path / "out" / "b", name="x")
    assert caught.value.where.startswith(str(folder))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "b").exists()


def test_more_tokens_than_the_model_knows_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(checkpoints["llama"], folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"<{n}>" for n in range(80)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(InputError, match="has token 399, the model a vocabulary of 320"):
        export_bundle(folder, tmp_path / "out" / "b", name="x")
    assert not (tmp_path / "out").exists()


def test_a_reference_that_is_none_is_not_packed(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "reference.npz").write_text("junk")
    with pytest.raises(InputError, match=r"reference\.npz: is no quality reference"):
        export_bundle(
            checkpoints["llama"], tmp_path / "b", name="x", reference=tmp_path / "reference.npz"
        )
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_no_fault_of_the_model(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*_: object) -> None:
        try:
            raise OSError(number, "no room", "/tmp/model.onnx.data")
        except OSError as error:
            raise RuntimeError("cannot save") from error

    monkeypatch.setattr("mobius.__main__.main", fails)
    with pytest.raises(InputError) as caught:
        export_bundle(checkpoints["llama"], tmp_path / "b", name="x")
    assert str(caught.value) == (
        "/tmp/model.onnx.data: the disk is full; make room and run the same command again"
    )


def test_room_is_asked_for(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[Path, int] = {}
    for module in ("kdexport.bundle", "kdexport.export.bundles"):
        monkeypatch.setattr(f"{module}.need_room", lambda folder, n: asked.update({folder: n}))
    export_bundle(checkpoints["llama"], tmp_path / "out" / "b", name="x")
    weights = (tmp_path / "out" / "b" / WEIGHTS).stat().st_size
    assert set(asked) == {Path(tempfile.gettempdir()), tmp_path / "out"}
    assert all(n > 0.8 * weights for n in asked.values())  # alignment takes the rest


def test_a_saved_padding_does_not_stop_an_export(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(checkpoints["llama"], folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=32)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert len(load_text(export_bundle(folder, tmp_path / "b", name="x")).encode("Bread")) < 32


def test_heads_that_the_engine_cannot_run_are_refused(tmp_path: Path) -> None:
    folder = make_gpt2(tmp_path / "m", hidden=48)  # four heads of 12
    with pytest.raises(InputError, match="heads of 12 channels"):
        export_bundle(folder, tmp_path / "b", name="x")
    assert not (tmp_path / "b").exists()


def test_other_folders_are_not_overwritten(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="other things"):
        export_bundle(checkpoints["llama"], tmp_path / "photos", name="x")
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_a_place_is_refused_before_the_long_work(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = export_bundle(checkpoints["llama"], tmp_path / "b", name="x")
    unable = replace(bundles_module.BACKENDS["mobius"], build_graph=None)
    monkeypatch.setattr(bundles_module, "BACKENDS", {"mobius": unable})
    monkeypatch.setattr(quantize_module, "load_draft", None)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is no folder"):
        export_bundle(checkpoints["llama"], tmp_path / "file", name="x")
    with pytest.raises(InputError, match="is no folder"):
        quantize_bundle(parent, "int8", tmp_path / "file")


def test_a_damaged_parent_is_not_quantized(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    parent = export_bundle(checkpoints["llama"], tmp_path / "b", name="x")
    content = bytearray(parent.file("tokenizer.json").read_bytes())
    content[-1] ^= 1
    parent.file("tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json has changed"):
        quantize_bundle(parent, "int8", tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_truncated_weights_are_one_line(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(checkpoints["llama"], folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
