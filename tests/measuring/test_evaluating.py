"""A bundle on someone's own texts, beside its teacher, against numpy and PyTorch themselves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from kdexport.bundle import Bundle
from kdexport.commands.main import cli
from kdexport.data.pairs import Pair
from kdexport.errors import InputError, KdexportError
from kdexport.export.bundles import export_bundle
from kdexport.measuring.evaluating import encode, evaluate
from kdexport.runtime.quality import log_softmax
from kdexport.runtime.session import open_session
from kdexport.runtime.text import load_text
from kdexport.verdict.scores import Evaluation
from tests.measuring.test_vocabularies import words
from tests.models import CORPUS, make_llama

ASK = {"n_threads": 1, "n_texts": None, "n_copies": 0, "new_tokens": 8, "teacher": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluating")
    rows: list[dict[str, Any]] = [
        {"prompt": f"Write an ad, number {n}", "completion": text} for n, text in enumerate(CORPUS)
    ]
    rows.append({"text": CORPUS[0]})
    rows.append(
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
    )
    (root / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_llama(root / "teacher", n_layers=3, hidden=96)
    return root


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return export_bundle(make_llama(folder / "student"), folder / "bundle", name="student")


def ask(bundle: Bundle, folder: Path, **changed: Any) -> Evaluation:
    return evaluate(bundle.path, folder / "own.jsonl", **(ASK | changed))


def own_texts(bundle: Bundle) -> list[tuple[list[int], int]]:
    """Ids and the place of the first target of each text of the file."""
    codec = load_text(bundle)

    def cut(text: str) -> list[int]:
        return list(codec.tokenizer.encode(text, add_special_tokens=False).ids)

    (end,) = codec.facts.eos_token_ids
    asked = [(f"Write an ad, number {n}", text) for n, text in enumerate(CORPUS)] + [("Hi", "Yo")]
    texts = []
    for prompt, completion in asked:
        head = cut(codec.render_chat([{"role": "user", "content": prompt}]))
        texts.append(([*head, *cut(completion), end], len(head)))
    return [*texts[:4], ([*cut(CORPUS[0]), end], 1), texts[4]]


def test_perplexity_is_of_the_completions(bundle: Bundle, folder: Path) -> None:
    found = ask(bundle, folder)
    session = open_session(bundle, n_threads=1)
    nll: list[float] = []
    for ids, first in own_texts(bundle):
        logprobs = log_softmax(session.score(ids).astype(np.float64))
        nll += [-logprobs[place - 1, ids[place]] for place in range(first, len(ids))]
    (own,) = found.judged
    assert own.quality.perplexity == pytest.approx(np.exp(np.mean(nll)), rel=1e-5)
    error = np.std(nll, ddof=1) / np.sqrt(len(nll)) * np.exp(np.mean(nll))
    assert own.quality.perplexity_se == pytest.approx(error, rel=1e-4)
    assert own.quality.n_quality_tokens == len(nll)
    assert (found.n_texts, found.n_too_long) == (6, 0)
    assert own.quality.kl_mean is None
    assert own.copies is None


def test_the_kl_to_a_teacher_is_pytorch_s(bundle: Bundle, folder: Path) -> None:
    import torch

    from kdexport.train.model import load_model

    found = ask(bundle, folder, teacher=str(folder / "teacher"), n_copies=2)
    kl: list[float] = []
    teacher, student = (load_model(folder / name) for name in ("teacher", "student"))
    for ids, first in own_texts(bundle):
        with torch.no_grad():
            p, q = (
                torch.log_softmax(model(torch.tensor([ids])).logits[0, first - 1 : -1].double(), -1)
                for model in (teacher, student)
            )
        kl += (p.exp() * (p - q)).sum(-1).tolist()
    own, its_teacher = found.judged
    assert np.mean(kl) > 0.001
    assert own.quality.kl_mean == pytest.approx(np.mean(kl), abs=1e-4)
    assert own.quality.kl_max == pytest.approx(max(kl), abs=1e-4)
    assert its_teacher.quality.kl_mean == 0
    ratio = (own.quality.perplexity or 0) / (its_teacher.quality.perplexity or 1)
    assert own.quality.ppl_ratio == pytest.approx(ratio)
    for judged in found.judged:
        assert judged.copies is not None
        assert len(judged.copies.requests) == 2
        assert "chrf" in judged.copies.intervals


def test_a_bundle_may_be_the_teacher(bundle: Bundle, folder: Path) -> None:
    found = ask(bundle, folder, teacher=str(bundle.path), n_texts=2)
    assert found.n_texts == 2
    assert found.judged[0].quality.kl_max == pytest.approx(0, abs=1e-12)
    assert found.judged[0].quality.top5 == 1


def test_the_command_prints_tables_or_json(bundle: Bundle, folder: Path) -> None:
    asked = ["eval", str(bundle.path), str(folder / "own.jsonl"), "--texts", "2", "--copies", "1"]
    told = CliRunner().invoke(cli, [*asked, "--new", "4", "--json"], catch_exceptions=False)
    assert Evaluation.model_validate_json(told.stdout).n_texts == 2
    shown = CliRunner().invoke(cli, [*asked, "--new", "4"], catch_exceptions=False).output
    for word in ("perplexity", "ECE", "chrF", "completions"):
        assert word in shown


@pytest.mark.parametrize(
    ("content", "teacher", "reason"),
    [
        ("", None, r"own\.jsonl: is empty"),
        ('{"prompt": "x"}\n', None, r"own\.jsonl:1: completion is missing or empty"),
        ('{"a": 1}\n', None, "holds neither messages"),
        (
            json.dumps({"text": "word " * 300}) + "\n",
            None,
            "none of its 1 texts fits .* 256 tokens",
        ),
        ('{"text": "x y z"}\n', "no/such", "--teacher: .*no/such"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    bundle: Bundle, tmp_path: Path, content: str, teacher: str | None, reason: str
) -> None:
    (tmp_path / "own.jsonl").write_text(content)
    with pytest.raises(KdexportError, match=reason) as caught:
        ask(bundle, tmp_path, teacher=teacher)
    assert "\n" not in str(caught.value)


def test_no_bundle_is_one_line(folder: Path) -> None:
    with pytest.raises(InputError, match="is no bundle"):
        evaluate(folder / "teacher", folder / "own.jsonl", **ASK)


def test_a_text_ends_with_its_end_token(tmp_path: Path) -> None:
    codec = words(tmp_path, "x", "end", "tea", "bread")
    text = encode(Pair("a", "train", (), "tea"), codec)
    assert (text.ids.tolist(), text.first_target) == ([1, 0], 1)
    assert text.targets.tolist() == [1]
