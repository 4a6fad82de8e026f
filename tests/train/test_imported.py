"""Targets from a file are those that were written, or one line says what is wrong with them."""

import contextlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdexport.errors import InputError
from kdexport.train import target_files
from kdexport.train.cache import Columns
from kdexport.train.columns import read_top_k
from kdexport.train.data import Encoded
from kdexport.train.imported import Names, asked_texts, read_targets
from kdexport.train.losses import LOSSES, distance
from kdexport.train.targets import Targets

V = 30
SAME = Names(np.arange(V), V)
TEXT = Encoded("a", np.array([4, 7, 9, 2]), 2, 2)
LINE: dict[str, Any] = {
    "id": "a",
    "ids": [4, 7, 9, 2],
    "first": 2,
    "top_ids": [[9, 1], [2, 3]],
    "top_logprobs": [[-0.5, -2.0], [-0.1, -3]],
}


def read(folder: Path, *lines: Any, names: Names = SAME, top_k: int = 2) -> Columns:
    path = folder / "targets.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ((_, columns),) = read_targets([path], [TEXT], names, top_k)
    return columns


def changed(**fields: Any) -> dict[str, Any]:
    return {**LINE, **fields}


def test_a_line_becomes_rows(tmp_path: Path) -> None:
    columns = read(tmp_path, changed(id="another"), LINE)
    assert columns["ids"].tolist() == [[9, 1], [2, 3]]
    torch.testing.assert_close(columns["logprobs"], torch.tensor([[-0.5, -2], [-0.1, -3]]).half())
    tails = [
        math.log(1 - math.exp(-0.5) - math.exp(-2)),
        math.log(1 - math.exp(-0.1) - math.exp(-3)),
    ]
    torch.testing.assert_close(columns["tail"], torch.tensor(tails).half(), rtol=1e-3, atol=1e-3)


def test_what_is_before_our_first_target_is_left_out(tmp_path: Path) -> None:
    line = changed(
        first=1, top_ids=[[7], *LINE["top_ids"]], top_logprobs=[[-9], *LINE["top_logprobs"]]
    )
    assert read(tmp_path, line)["ids"].tolist() == [[9, 1], [2, 3]]


def test_what_is_asked_is_what_is_wanted_back(tmp_path: Path) -> None:
    names = Names(np.arange(V)[::-1].copy(), V)
    (asked,) = asked_texts([TEXT], names)
    assert asked == {"id": "a", "ids": [25, 22, 20, 27], "first": 2}
    tokens = {"top_ids": [[20, 28], [27, 26]], "top_logprobs": LINE["top_logprobs"]}
    assert read(tmp_path, {**asked, **tokens}, names=names)["ids"].tolist() == [[9, 1], [2, 3]]


def test_tokens_that_the_student_lacks_are_renormalised_away(tmp_path: Path) -> None:
    """A student of ten of thirty tokens; a quarter of the mass of the first row is on others."""
    names = Names(np.arange(10), V)
    rows = [[0.5, 0.25, 0.125], [0.5, 0.25, 0.125]]
    line = changed(top_ids=[[9, 20, 1], [2, 3, 4]], top_logprobs=np.log(rows).tolist())
    columns = read(tmp_path, line, names=names, top_k=3)
    found = columns["logprobs"].float().exp()
    expected = torch.tensor([[0.5 / 0.75, 0.125 / 0.75, 0.0], [0.5, 0.25, 0.125]])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    tails = torch.tensor([0.125 / 0.75, 0.125])
    torch.testing.assert_close(columns["tail"].float().exp(), tails, rtol=1e-3, atol=1e-3)


SURE = np.concatenate([[25.0], np.linspace(0, -6, V - 1)])  # logits; all but the first: 1e-10


def said(logits: np.ndarray, n: int) -> dict[str, Any]:
    """A line of the ``n`` likeliest tokens, in float32 as a program on a GPU has them."""
    z = logits.astype(np.float32) + np.float32(20)
    logprobs = (z - np.log(np.exp(z - z.max()).sum()) - z.max())[:n]
    return changed(top_ids=[list(range(n))] * 2, top_logprobs=[logprobs.tolist()] * 2)


@pytest.mark.parametrize(("n", "top_k"), [(V - 1, 4), (12, 4), (12, 12)])
def test_the_tail_of_a_sure_teacher_is_not_lost_in_rounding(
    tmp_path: Path, n: int, top_k: int
) -> None:
    """What was given is summed; what was not is guessed from the least of it."""
    p = np.exp(SURE - SURE.max())
    p /= p.sum()
    assert p[4:].sum() < 1e-10  # of which float32 has none beside 1
    found = read(tmp_path, said(SURE, n), top_k=top_k)["tail"].double()
    close = 0.05 if n == V - 1 else math.log(5)
    assert found.tolist() == pytest.approx([math.log(p[top_k:].sum())] * 2, abs=close)


def test_a_text_s_own_token_behind_the_likeliest_does_not_bound_the_others(tmp_path: Path) -> None:
    """vLLM gives it whatever its rank: here one of 1e-9, with a fifth of the mass not given."""
    rows = [[0.5, 0.3, 1e-9]] * 2
    line = changed(top_ids=[[9, 1, 20]] * 2, top_logprobs=np.log(rows).tolist())
    tails = read(tmp_path, line, top_k=3)["tail"].float().exp()
    torch.testing.assert_close(tails, torch.tensor([0.2, 0.2]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if not loss.whole])
def test_an_empty_column_adds_nothing_to_loss_or_gradient(tmp_path: Path, name: str) -> None:
    few = read_top_k(read(tmp_path, LINE, top_k=2))
    wide = read_top_k(read(tmp_path, LINE, top_k=5))
    assert wide.logprobs.shape[-1] == 5

    def told(targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
        z = torch.linspace(-2, 2, 2 * V).reshape(2, V).requires_grad_()
        value = distance(name, z, targets, 1.0)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    for one, other in zip(told(few), told(wide), strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other)


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in LINE.items() if k != key}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (without("ids"), ":1: ids is missing"),
        (changed(ids=[4, 7, 9]), ":1: has 3 tokens, our text 4"),
        (changed(ids=[4, 7, 8, 2]), ":1: ids: token 2 is 8, in our text it is 9"),
        (changed(first=3), "first is 3; distributions are wanted from token 2 on"),
        (changed(first=0), "first is 0"),
        (without("first"), "first is None"),
        (without("top_ids"), "top_ids has to be a list of 2 lists"),
        (changed(top_logprobs=[[-1, -2]]), "top_logprobs has to be a list of 2 lists"),
        (changed(top_ids=[[9, 1], [2]]), ":1, token 3: top_ids has to be a list of ids"),
        (changed(top_ids=[[9, 1], []], top_logprobs=[[-1, -2], []]), "token 3: top_ids has to be"),
        (changed(top_ids=[[9, 1], "ab"]), "token 3: top_ids has to be a list of ids"),
        (changed(top_ids=[[9, 1.5], [2, 3]]), "token 2: top_ids has to be a list of ids"),
        (changed(top_ids=[[9, [1]], [2, 3]]), "token 2: top_ids has to be a list of ids"),
        (changed(top_ids=[[9, 30], [2, 3]]), "the teacher has tokens 0 to 29"),
        (changed(top_ids=[[9, -1], [2, 3]]), "the teacher has tokens 0 to 29"),
        (changed(top_ids=[[9, 9], [2, 3]]), "token 2: top_ids: a token is there twice"),
        (changed(top_logprobs=[[0.5, -2], [-1, -3]]), "token 2: top_logprobs has to hold finite"),
        (changed(top_logprobs=[[math.nan, -2], [-1, -3]]), "has to hold finite"),
        (changed(top_logprobs=[[-math.inf, -2], [-1, -3]]), "has to hold finite"),
        (changed(top_logprobs=[[-0.1, -0.1], [-1, -3]]), "the probabilities add up to 1.81"),
        (changed(id="b"), "1 of 1 texts are in no file, 'a' is one"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, line)
    assert message in str(caught.value)


def test_a_text_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r":2: the text 'a' was in .*:1 already"):
        read(tmp_path, LINE, LINE)


TENSORS = {
    "tokens": torch.tensor(LINE["ids"]),
    "ids": torch.tensor(LINE["top_ids"], dtype=torch.int32),
    "logprobs": torch.tensor(LINE["top_logprobs"]),
}


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], examples: Any) -> Path:
    """Of two texts: another one, of the same tokens, before ours."""
    twice = {name: torch.cat([values, values]) for name, values in tensors.items()}
    save_file(twice, path, {"examples": json.dumps(examples)})
    return path


EXAMPLES = [["another", 4, 2], ["a", 4, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_say_what_lines_do(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = TENSORS | {"logprobs": TENSORS["logprobs"].to(dtype)}
    path = write_tensors(tmp_path / "targets.safetensors", tensors, EXAMPLES)
    ((examples, found),) = read_targets([path], [TEXT], SAME, 2)
    lines = read(tmp_path, changed(top_logprobs=tensors["logprobs"].double().tolist()))
    assert examples == [TEXT] and found.keys() == lines.keys()
    assert all(torch.equal(found[name], lines[name]) for name in found)


def test_one_text_of_a_file_is_in_memory_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tensors(tmp_path / "targets.safetensors", TENSORS, EXAMPLES)
    opened, sizes = target_files.safe_open, []

    class Watched:
        def __init__(self, column: Any) -> None:
            self.column = column

        def __getitem__(self, rows: slice) -> Any:
            sizes.append(len(self.column[rows]))
            return self.column[rows]

        def get_shape(self) -> Any:
            return self.column.get_shape()

    @contextlib.contextmanager
    def watched(*given: Any, **more: Any) -> Any:
        with opened(*given, **more) as file:
            proxy = SimpleNamespace(keys=file.keys, metadata=file.metadata)
            proxy.get_slice = lambda name: Watched(file.get_slice(name))
            yield proxy

    monkeypatch.setattr(target_files, "safe_open", watched)
    assert len(list(target_files.rows_of(path))) == 2
    assert sizes == [4, 2, 2] * 2


@pytest.mark.parametrize(
    ("tensors", "examples", "message"),
    [
        ({"ids": TENSORS["ids"]}, EXAMPLES, "has no tokens, no logprobs"),
        (TENSORS, None, "examples, in its metadata, has to be JSON"),
        (TENSORS, [], "examples, in its metadata"),
        (TENSORS, [["a", 4]], "examples, in its metadata"),
        (TENSORS, [["another", 4, 2], ["a", 4, 0]], "examples, in its metadata"),
        (
            TENSORS,
            EXAMPLES[:1],
            "has 8 tokens and 4 rows of ids, 4 of logprobs; examples tells",
        ),
        (TENSORS | {"ids": TENSORS["ids"][:1]}, EXAMPLES, "2 rows of ids, 4 of logprobs"),
        (TENSORS | {"tokens": torch.tensor([4, 7, 8, 2])}, EXAMPLES, "text 'a': ids: token 2 is 8"),
        (TENSORS | {"ids": TENSORS["ids"] + 30}, EXAMPLES, "text 'a', token 2: top_ids: the teach"),
        (TENSORS | {"ids": TENSORS["ids"].float()}, EXAMPLES, "text 'a', token 2: top_ids has to"),
        (TENSORS | {"logprobs": TENSORS["logprobs"] + 9}, EXAMPLES, "top_logprobs has to hold"),
    ],
)
def test_what_is_wrong_with_tensors_is_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], examples: Any, message: str
) -> None:
    path = write_tensors(tmp_path / "targets.safetensors", tensors, examples)
    with pytest.raises(InputError) as caught:
        list(read_targets([path], [TEXT], SAME, 2))
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_file_that_was_cut_off_is_one_line(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "targets.safetensors", TENSORS, EXAMPLES)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="is no whole safetensors file"):
        list(read_targets([path], [TEXT], SAME, 2))
