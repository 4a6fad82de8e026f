"""A manifest vouches for every byte; what it does not vouch for is refused."""

import json
from pathlib import Path

import pytest

from kdexport.bundle import (
    Bundle,
    Graphs,
    Manifest,
    ModelFacts,
    TextFacts,
    commit_bundle,
    open_bundle,
    staged_bundle,
    verify_bundle,
)
from kdexport.errors import InputError

MANIFEST = Manifest(
    name="x",
    scheme="fp32",
    graphs=Graphs(prefill="model.onnx", decode="model.onnx"),
    model=ModelFacts(
        family="llama",
        n_parameters=1,
        n_layers=1,
        n_kv_heads=1,
        head_dim=8,
        hidden_size=8,
        vocab_size=9,
        max_length=16,
    ),
    text=TextFacts(eos_token_ids=[2]),
)
FILES = ("model.onnx", "weights.bin", "tokenizer.json")


def make(target: Path, manifest: Manifest = MANIFEST) -> Bundle:
    with staged_bundle(target) as staging:
        for name in FILES:
            (staging / name).write_text(name)
        return commit_bundle(staging, target, manifest)


def edit(bundle: Bundle, **changes: object) -> Path:
    path = bundle.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return bundle.path


def test_a_whole_bundle(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    assert verify_bundle(bundle.path) == []
    assert open_bundle(bundle.path) == bundle
    assert bundle.n_bytes == sum(len(name) for name in FILES)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("name", FILES)
def test_any_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    bundle = make(tmp_path / "b")
    content = bytearray(bundle.file(name).read_bytes())
    content[-1] ^= 1
    bundle.file(name).write_bytes(content)
    assert verify_bundle(bundle.path) == [f"{name} has changed: its sha256 differs"]


def test_missing_and_unlisted_files_are_found(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    bundle.file("weights.bin").unlink()
    bundle.file("evil.so").write_text("")
    assert verify_bundle(bundle.path) == [
        "weights.bin is missing or no plain file",
        "evil.so is not listed",
    ]
    with pytest.raises(InputError, match=r"weights\.bin is missing"):
        open_bundle(bundle.path)


def test_a_link_is_no_plain_file(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    bundle.file("weights.bin").rename(tmp_path / "elsewhere")
    bundle.file("weights.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no plain file"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/file", "..\\x", ""])
def test_names_that_climb_are_refused(tmp_path: Path, name: str) -> None:
    bundle = make(tmp_path / "b")
    files = json.loads((bundle.path / "manifest.json").read_text())["files"]
    path = edit(bundle, files=files | {name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(InputError, match="no plain file name"):
        open_bundle(path)


def test_a_newer_format_says_upgrade(tmp_path: Path) -> None:
    path = edit(make(tmp_path / "b"), format_version=99, whatever=1)
    with pytest.raises(InputError, match="upgrade kdexport"):
        open_bundle(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format_version": 1}', "\xff"])
def test_what_is_no_manifest_is_one_line(tmp_path: Path, content: str) -> None:
    bundle = make(tmp_path / "b")
    (bundle.path / "manifest.json").write_text(content, "latin-1")
    with pytest.raises(InputError) as caught:
        open_bundle(bundle.path)
    assert "\n" not in str(caught.value)


def test_a_failure_leaves_the_old_bundle(tmp_path: Path) -> None:
    old = make(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt), staged_bundle(tmp_path / "b") as staging:
        (staging / "model.onnx").write_text("half")
        raise KeyboardInterrupt
    assert open_bundle(tmp_path / "b") == old
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_what_is_no_bundle(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "no such bundle"), (tmp_path, "manifest.json")):
        with pytest.raises(InputError, match=reason):
            open_bundle(path)
