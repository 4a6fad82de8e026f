"""A teacher that is elsewhere: a run with its targets, and without its weights."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdexport.errors import InputError
from kdexport.pipeline.importing import import_targets, write_texts
from kdexport.pipeline.plan import plan_rows
from kdexport.pipeline.run import open_run as opened
from kdexport.pipeline.run import run_stages
from kdexport.recipe import Recipe, load_recipe
from kdexport.system.metrics import read_curve
from kdexport.train.model import load_model
from tests.models import CORPUS, make_llama
from tests.pipeline.test_service import answered

DOCS = Path(__file__).parents[2] / "docs"
RECIPE = """\
name: far
teacher: {source: teacher}
data: {pairs: pairs.jsonl}
student: {init: scratch, n_layers: 2, hidden_size: 32, n_heads: 2, n_kv_heads: 1, vocab_size: 300}
train: {targets: imported, lr: 3e-3, batch_size: 8, max_steps: 4, evaluate_steps: 2, top_k: 256}
bench: {prompt_tokens: 8, new_tokens: 4, n_runs: 1, n_samples: 1}
"""


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Callable[..., Recipe]]:
    """A teacher in memory, which has left configuration and tokenizer behind; a recipe for it."""
    monkeypatch.chdir(tmp_path)
    teacher = load_model(make_llama(tmp_path / "teacher", n_layers=3))
    (tmp_path / "teacher" / "model.safetensors").unlink()
    splits = ["train"] * 12 + ["validation"] * 3 + ["test"] * 2
    rows = [
        {"prompt": f"Text {n}", "completion": CORPUS[n % 4][: 19 + n], "split": split}
        for n, split in enumerate(splits)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return teacher, lambda *overrides: load_recipe(tmp_path / "recipe.yaml", overrides)


def test_a_whole_run_needs_none_of_the_teacher_s_weights(
    far: tuple[Any, Callable[..., Recipe]], tmp_path: Path
) -> None:
    teacher, recipe = far
    assert write_texts(recipe("train.targets=cached"), tmp_path / "texts.jsonl") == 17
    import_targets(recipe(), [answered(tmp_path / "texts.jsonl", teacher)])
    run = opened(recipe())
    assert {row["stage"]: row["outputs"] for row in plan_rows(run)}["teacher"] == []
    run_stages(run)
    found = [p.evaluation for p in read_curve(run.metrics) if p.evaluation]
    assert found[1]["kl"] < found[0]["kl"]
    report = json.loads((run.folder / "bench.json").read_text())
    arms = {arm["arm"]: arm for arm in report["arms"]}
    assert list(arms) == ["student-torch-fp32", "student-fp32", "student-int8"]
    assert report["baseline"] == "student-torch-fp32"
    assert arms["student-fp32"]["kl_mean"] == pytest.approx(found[1]["kl"], rel=0.5)
    assert not list((tmp_path / "teacher").glob("*.safetensors"))


def test_a_checkpoint_learns_from_a_teacher_that_is_elsewhere(
    far: tuple[Any, Callable[..., Recipe]], tmp_path: Path
) -> None:
    teacher, recipe = far
    make_llama(tmp_path / "student", n_layers=2, hidden=32)
    text = RECIPE.splitlines()
    text[3] = "student: {init: checkpoint, from: student}"
    (tmp_path / "recipe.yaml").write_text("\n".join(text))
    write_texts(recipe(), tmp_path / "texts.jsonl")
    import_targets(recipe(), [answered(tmp_path / "texts.jsonl", teacher)])
    run = opened(recipe())
    run_stages(run, until="distill")
    assert run.reference.is_file()


def test_what_needs_the_weights_says_so(
    far: tuple[Any, Callable[..., Recipe]], tmp_path: Path
) -> None:
    teacher, recipe = far
    for needs in ("train.targets=cached", "train.on_policy.fraction=1"):
        with pytest.raises(InputError, match="has no safetensors file"):
            opened(recipe(needs))
    write_texts(recipe(), tmp_path / "texts.jsonl")
    file = answered(tmp_path / "texts.jsonl", teacher)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:12]))
    import_targets(recipe(), [file])
    with pytest.raises(InputError, match="to be asked of held-out texts, and its weights are not"):
        run_stages(opened(recipe()))


class StandIn:
    """As much of vLLM as the documents' script asks for: the likeliest, and a text's own token."""

    def __init__(self, model: Any, most: int) -> None:
        self.model, self.most = model, most

    @torch.no_grad()
    def generate(self, prompts: Any, ask: Any) -> list[Any]:
        assert (ask["max_tokens"], ask["prompt_logprobs"]) == (1, self.most)
        return [SimpleNamespace(prompt_logprobs=self._told(p["prompt_token_ids"])) for p in prompts]

    def _told(self, ids: list[int]) -> list[Any]:
        logprobs = torch.log_softmax(self.model(torch.tensor([ids])).logits[0], -1)
        rows: list[Any] = [None]
        for token, row in zip(ids[1:], logprobs[:-1], strict=True):
            named = {token, *row.topk(self.most).indices.tolist()}
            rows.append({i: SimpleNamespace(logprob=float(row[i])) for i in named})
        return rows


def test_the_script_for_vllm_writes_what_is_imported(
    far: tuple[Any, Callable[..., Recipe]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every token that the teacher has, the same as of JSONL; a few texts a file."""
    teacher, recipe = far
    n_tokens = int(teacher.config.vocab_size)
    found = re.search(
        r"```python\n(import json, sys, torch\n.*?)```",
        (DOCS / "recipes.md").read_text("utf-8"),
        re.DOTALL,
    )
    assert found
    script = found[1].replace("K, AT_ONCE = 64, 10_000", f"K, AT_ONCE = {n_tokens}, 6")
    vllm: Any = ModuleType("vllm")
    vllm.LLM = lambda path, max_logprobs: StandIn(teacher, max_logprobs)
    vllm.SamplingParams = dict
    inputs: Any = ModuleType("vllm.inputs")
    inputs.TokensPrompt = dict
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.inputs", inputs)
    monkeypatch.setattr(sys, "argv", ["script", "teacher"])
    write_texts(recipe(), tmp_path / "texts.jsonl")
    exec(compile(script, "docs/recipes.md", "exec"), {})
    files = sorted(tmp_path.glob("targets-*.safetensors"))
    assert [file.name for file in files] == [f"targets-{n:09d}.safetensors" for n in (0, 6, 12)]
    one = load_file(import_targets(recipe(), files) / "00000.safetensors")
    lines = answered(tmp_path / "texts.jsonl", teacher)
    other = load_file(import_targets(recipe(), [lines]) / "00000.safetensors")
    assert one.keys() == other.keys() == {"ids", "logprobs", "tail"}
    assert all(torch.equal(one[name], other[name]) for name in one)
