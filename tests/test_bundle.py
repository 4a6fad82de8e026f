"""A manifest vouches for every byte; what it does not vouch for is refused."""

import errno
import hashlib
import json
from pathlib import Path

import pytest

from kdexport.bundle import (
    WEIGHTS,
    Bundle,
    FileFacts,
    Graphs,
    Manifest,
    ModelFacts,
    TextFacts,
    check_target,
    commit_bundle,
    copy_companions,
    open_bundle,
    staged_bundle,
    verify_bundle,
    weights_location,
)
from kdexport.errors import InputError

MANIFEST = Manifest(
    name="x",
    scheme="fp32",
    graphs=Graphs(prefill="onnx/decode.onnx", decode="onnx/decode.onnx"),
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
FILES = ("onnx/decode.onnx", WEIGHTS, "tokenizer.json")


def make(target: Path, manifest: Manifest = MANIFEST) -> Bundle:
    with staged_bundle(target) as staging:
        (staging / "onnx").mkdir()
        for name in FILES:
            (staging / name).write_text(name)
        return commit_bundle(staging, target, manifest)


def edit(bundle: Bundle, **changes: object) -> Path:
    """Change a manifest as its writer might have: with a hash that fits."""
    path = bundle.path / "manifest.json"
    text = json.dumps(json.loads(path.read_text()) | changes | {"self_sha256": "HASH"})
    own = hashlib.sha256(text.replace("HASH", "").encode()).hexdigest()
    path.write_text(text.replace("HASH", own))
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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"max_length": 16', '"max_length": 61'),
        ("    2\n", "    3\n"),  # eos_token_ids
        ("\n}\n", "\n}\n "),
        ('"self_sha256": "', '"self_sha256": "0'),
        ("{\n", '{\n"self_sha256": "",\n'),
    ],
)
def test_any_change_of_the_manifest_is_found(tmp_path: Path, old: str, new: str) -> None:
    path = make(tmp_path / "b").path / "manifest.json"
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    assert verify_bundle(path.parent) == ["manifest.json has changed: its sha256 differs"]
    with pytest.raises(InputError, match=r"manifest\.json has changed"):
        open_bundle(path.parent)


def test_a_manifest_without_a_hash_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "b").path / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["self_sha256"]
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"no sha256 of its own.*export the bundle again"):
        open_bundle(path.parent)
    assert make(tmp_path / "b").manifest.self_sha256


def test_missing_and_unlisted_files_are_found(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    bundle.file(WEIGHTS).unlink()
    for name in ("evil.so", "onnx/evil.so", "more/evil.so"):
        bundle.file(name).parent.mkdir(exist_ok=True)
        bundle.file(name).write_text("")
    assert verify_bundle(bundle.path) == [
        "onnx/model.onnx_data is missing or no plain file",
        "evil.so is not listed",
        "more is not listed",
        "onnx/evil.so is not listed",
    ]
    with pytest.raises(InputError, match=r"onnx/model\.onnx_data is missing"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("name", [WEIGHTS, "onnx"])
def test_a_link_is_no_plain_file(tmp_path: Path, name: str) -> None:
    bundle = make(tmp_path / "b")
    bundle.file(name).rename(tmp_path / "elsewhere")
    bundle.file(name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no plain file"):
        open_bundle(bundle.path)
    assert "onnx/model.onnx_data is missing or no plain file" in verify_bundle(bundle.path)


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/passwd", "onnx/../../x", "onnx//x", "./x", "onnx/", "..", "..\\x", ""],
)
def test_names_that_climb_are_refused(tmp_path: Path, name: str) -> None:
    bundle = make(tmp_path / "b")
    files = json.loads((bundle.path / "manifest.json").read_text())["files"]
    path = edit(bundle, files=files | {name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(InputError, match="no plain file name"):
        open_bundle(path)


def test_a_bundle_of_format_1_still_opens(tmp_path: Path) -> None:
    graphs = Graphs(prefill="prefill.onnx", decode="decode.onnx")
    old = MANIFEST.model_copy(
        update={"format_version": 1, "graphs": graphs, "weights": "weights.bin"}
    )
    with staged_bundle(tmp_path / "b") as staging:
        for name in ("prefill.onnx", "decode.onnx", "weights.bin", "tokenizer.json"):
            (staging / name).write_text(name)
        commit_bundle(staging, tmp_path / "b", old)
    path = tmp_path / "b" / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["graphs"]["standard"]  # unknown to format 1
    opened = open_bundle(edit(open_bundle(tmp_path / "b"), graphs=fields["graphs"]))
    assert opened.manifest.graphs == graphs
    assert verify_bundle(opened.path) == []


@pytest.mark.parametrize(
    ("graph", "weights", "location"),
    [
        ("onnx/model.onnx", "onnx/model.onnx_data", "model.onnx_data"),
        ("decode.onnx", "weights.bin", "weights.bin"),
        ("model.onnx", "onnx/model.onnx_data", "onnx/model.onnx_data"),
    ],
)
def test_where_a_graph_looks_for_its_weights(graph: str, weights: str, location: str) -> None:
    assert weights_location(graph, weights) == location


def test_weights_above_a_graph_are_refused() -> None:
    with pytest.raises(InputError, match=r"weights\.bin lies neither beside nor below"):
        weights_location("onnx/decode.onnx", "weights.bin")


def test_companions_are_all_but_graphs_and_weights(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    copy_companions(bundle, tmp_path / "copy")
    copied = [p for p in (tmp_path / "copy").rglob("*") if p.is_file()]
    assert [p.name for p in copied] == ["tokenizer.json"]
    assert copied[0].read_bytes() == bundle.file("tokenizer.json").read_bytes()


def test_a_newer_format_says_upgrade(tmp_path: Path) -> None:
    path = edit(make(tmp_path / "b"), format_version=99, whatever=1)
    with pytest.raises(InputError, match="upgrade kdexport"):
        open_bundle(path)


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "null", "{}", "\xff", "[" * 100_000),
        *(f'{{"format_version": {v}}}' for v in ('"1"', "null", "1.0", "0", "-1", "true")),
    ],
)
def test_what_is_no_manifest_is_one_line(tmp_path: Path, content: str) -> None:
    bundle = make(tmp_path / "b")
    (bundle.path / "manifest.json").write_text(content, "latin-1")
    for read in (open_bundle, verify_bundle):
        with pytest.raises(InputError, match=r"manifest\.json: is no manifest of a bundle$"):
            read(bundle.path)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("model", "n_layers", 0),
        ("model", "head_dim", -8),
        ("model", "max_length", "long"),
        ("text", "bos_token_id", -1),
        ("text", "eos_token_ids", [2, -1]),
    ],
)
def test_facts_that_cannot_be_are_one_line(
    tmp_path: Path, part: str, field: str, value: object
) -> None:
    bundle = make(tmp_path / "b")
    facts = json.loads((bundle.path / "manifest.json").read_text())[part]
    path = edit(bundle, **{part: facts | {field: value}})
    with pytest.raises(InputError, match=rf"manifest\.json: {part}\.{field}") as caught:
        open_bundle(path)
    assert "\n" not in str(caught.value)


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught, staged_bundle(tmp_path / "b"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value).startswith(f"{tmp_path / 'b'}: the disk is full; make room")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="may be needed"), staged_bundle(tmp_path / "b", 10**18):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_bundle(tmp_path: Path) -> None:
    old = make(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt), staged_bundle(tmp_path / "b") as staging:
        (staging / "half.onnx").write_text("half")
        raise KeyboardInterrupt
    assert open_bundle(tmp_path / "b") == old
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_what_is_no_bundle(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "no such bundle"), (tmp_path, "manifest.json")):
        with pytest.raises(InputError, match=reason):
            open_bundle(path)


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "web"
    target.mkdir()
    (target / "manifest.json").write_text('{"name": "My app", "icons": []}')
    (target / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="no manifest of a bundle; name another folder"):
        make(target)
    assert sorted(p.name for p in target.iterdir()) == ["manifest.json", "thesis.tex"]
    assert [p.name for p in tmp_path.iterdir()] == ["web"]


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("name", ["notes", "onnx/notes"])
def test_a_stranger_in_a_bundle_is_not_removed(tmp_path: Path, is_folder: bool, name: str) -> None:
    stranger = make(tmp_path / "b").path / name
    stranger.mkdir() if is_folder else stranger.write_text("x")
    with pytest.raises(InputError, match=f"{name} lies in the bundle there"):
        make(tmp_path / "b")
    assert stranger.exists()


def test_a_folder_with_a_file_s_name_is_a_stranger(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    bundle.file(WEIGHTS).unlink()
    bundle.file(WEIGHTS).mkdir()
    (bundle.file(WEIGHTS) / "photo.jpg").write_text("x")
    with pytest.raises(InputError, match=r"onnx/model\.onnx_data lies in"):
        make(tmp_path / "b")


def test_a_bundle_of_a_newer_format_is_not_replaced(tmp_path: Path) -> None:
    path = edit(make(tmp_path / "b"), format_version=99, whatever=1)
    with pytest.raises(InputError, match="upgrade kdexport or name another folder"):
        make(path)
    assert (path / WEIGHTS).exists()


def test_what_came_while_a_bundle_was_written_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "b"
    with staged_bundle(target) as staging:
        (staging / "x").write_text("x")
        target.mkdir()
        (target / "photo.jpg").write_text("x")
        with pytest.raises(InputError, match="other things"):
            commit_bundle(staging, target, MANIFEST)
    assert [p.name for p in target.iterdir()] == ["photo.jpg"]


def test_a_damaged_bundle_and_an_empty_folder_are_replaced(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    bundle.file(WEIGHTS).unlink()
    edit(bundle, files={name: FileFacts(sha256="", bytes=0).model_dump() for name in FILES})
    (tmp_path / "empty").mkdir()
    for name in ("b", "empty"):
        assert verify_bundle(make(tmp_path / name).path) == []


@pytest.mark.parametrize("name", [".", "..", "/", "", "b/..", "file", "file/b", "link"])
def test_places_that_can_be_no_bundle_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as caught:
        make(Path(name))
    assert "name another folder" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_place_that_cannot_be_written_to_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_target(tmp_path / "b")
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root
    with pytest.raises(InputError, match="cannot be written to"):
        make(tmp_path / "b")
