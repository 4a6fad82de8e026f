"""The stage that makes a run's data: pairs are written or read, sieved, counted and kept.

Knows where pairs come from and why they are dropped; not what is learnt from them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kdexport.data.card import DataCard, Drops, amend_card, language_identifier
from kdexport.data.contamination import HeldOut, Overlap
from kdexport.data.pairs import SPLITS, Pair, within_limits, write_pairs
from kdexport.errors import InputError
from kdexport.pipeline.choosing import Written
from kdexport.pipeline.preflight import (
    brand_of,
    channels_of,
    limits_of,
    load_asked_briefs,
    own_pairs,
    pairs_beside,
    token_counter,
)
from kdexport.pipeline.run import Run
from kdexport.recipe.sections import DataSection, GenerateSection
from kdexport.system.console import say, tracked


def make_pairs(run: Run) -> None:
    """Briefs -> pairs written by the teacher, or the user's own pairs; sieved, with a card."""
    data = run.recipe.data
    drops, overlap, card = Drops(), Overlap(), DataCard(language_identifier())
    if data.pairs is None:
        written, channels = _synthesized_pairs(run, drops)
        source: Iterable[Pair] = [*pairs_beside(run), *written]
    else:
        source, channels = own_pairs(run), {}
        if data.answer_prompts:
            source = _answered_pairs(run, drops)
    count = token_counter(run)

    def counted() -> Iterator[Pair]:
        for pair in sieved(source, data, drops, overlap):
            card.add(pair, *count(pair), channels.get(pair.id))
            yield pair
        if not card.n_pairs("train"):
            raise _nothing_left(data, drops, overlap)

    write_pairs(run.pairs, counted())
    content = {"splits": card.as_json(), "dropped": drops.as_json()}
    amend_card(run.folder, {**content, "held_out_too": overlap.as_json()})
    if overlap.count:
        say(
            f"    {overlap.count} training texts equal or nearly equal a held-out one: "
            f"{_became(data, overlap, card.n_pairs('train'))}; {overlap.example}"
        )
    say(f"    {card.n_pairs(*SPLITS)} pairs kept; dropped: {drops}")


def _became(data: DataSection, overlap: Overlap, n_left: int) -> str:
    if data.contamination != "drop":
        return "kept, as data.contamination says"
    return "dropped, more than are left" if overlap.count > n_left else "dropped"


def _nothing_left(data: DataSection, drops: Drops, overlap: Overlap) -> InputError:
    where = str(data.pairs or data.briefs)
    if not overlap.count:
        why = f"; dropped: {drops}" if drops.counts else ""
        return InputError(f"no pair is left to train on{why}", where=where)
    return InputError(
        f"no pair is left to train on: {overlap.count} equal or nearly equal a held-out text; "
        f"{overlap.example}",
        where=where,
        remedy="hold out other texts, or set data.contamination to warn to keep them",
    )


def sieved(
    source: Iterable[Pair], data: DataSection, drops: Drops, overlap: Overlap
) -> Iterator[Pair]:
    """The pairs that are kept: those for training first, then validation and test.

    ``source`` is read twice: for what is held out, which is kept in memory, and for the training
    texts, which are looked up in it one by one. What is over a split's limit is not looked at.
    """
    limits = limits_of(data)
    held_out: dict[str, list[Pair]] = {"validation": [], "test": []}
    for pair in source:
        if pair.split != "train":
            _keep(pair, held_out[pair.split], limits[pair.split], drops)
    looked_at = held_out.values() if data.contamination != "ignore" else ()
    index = HeldOut((pair for pairs in looked_at for pair in pairs), data.near_duplicate)
    n_kept = 0
    for pair in source:
        if pair.split != "train":
            continue
        if n_kept == limits["train"]:
            drops.add("over the limit", pair.id)
            continue
        match = index.match(pair)
        if match:
            overlap.add(pair.id, match)
        if match and data.contamination == "drop":
            drops.add(match.reason, pair.id)
        else:
            n_kept += 1
            yield pair
    for pairs in held_out.values():
        yield from pairs


def _keep(pair: Pair, pairs: list[Pair], limit: int | None, drops: Drops) -> None:
    if len(pairs) == limit:
        drops.add("over the limit", pair.id)
    else:
        pairs.append(pair)


def _answered_pairs(run: Run, drops: Drops) -> Iterable[Pair]:
    """The user's own pairs, with the teacher's answers to prompts that stand alone."""
    from kdexport.pipeline.answering import answer

    data = run.recipe.data
    pairs = within_limits(list(own_pairs(run)), limits_of(data))
    with tracked("teacher answers", "prompts") as progress:
        answered = answer(
            pairs,
            *_writer(run),
            max_new_tokens=data.generate.max_new_tokens,
            progress=progress,
            **_drafts(run),
        )
    _add_drops(answered.dropped, drops)
    return answered.pairs


def _synthesized_pairs(run: Run, drops: Drops) -> tuple[Iterable[Pair], dict[str, str]]:
    """What the teacher writes that is of use, and the channel of each pair."""
    from kdexport.pipeline.synthesize import synthesize, variant_ids

    wishes = run.recipe.data.generate
    briefs = load_asked_briefs(run)
    with tracked("teacher writes", "copies") as progress:
        written = synthesize(
            briefs,
            *_writer(run),
            progress=progress,
            channels=channels_of(run),
            brand=brand_of(run),
            **_drafts(run),
        )
    _add_drops(written.dropped, drops)
    channels = {
        name: brief.channel for brief in briefs for name in variant_ids(brief, wishes.variants)
    }
    amend_card(run.folder, _told(written, wishes))
    return written.pairs, channels


def _writer(run: Run) -> tuple[Any, Any, Any]:
    """The teacher as one that writes: its session and codec, and how it samples."""
    from kdexport.pipeline.synthesize import Sampling
    from kdexport.runtime.session import open_session
    from kdexport.runtime.text import load_text

    wishes = run.recipe.data.generate
    sampling = Sampling(
        temperature=wishes.temperature,
        top_p=wishes.top_p,
        top_k=wishes.top_k,
        variants=wishes.variants,
        best_of=wishes.best_of,
        scorer=wishes.scorer,
        review=wishes.review,
        batch_size=wishes.batch_size,
        seed=run.recipe.seed,
    )
    n_threads = run.recipe.train.n_threads
    session = open_session(run.teacher_bundle, n_threads=n_threads, many_tokens=True)
    return session, load_text(run.teacher_bundle), sampling


def _drafts(run: Run) -> dict[str, Any]:
    """Where what it writes is kept, and by whom it is."""
    return {"drafts_path": run.folder / "drafts.jsonl", "teacher": run.teacher.fingerprint}


def _add_drops(dropped: Mapping[str, Sequence[str]], drops: Drops) -> None:
    for reason, names in dropped.items():
        for name in names:
            drops.add(reason, name)


def _told(written: Written, wishes: GenerateSection) -> dict[str, Any]:
    """What the card has of candidates, where there are several or they are reviewed."""
    kept = Drops()
    for fault, names in written.kept.items():
        for name in names:
            kept.add(fault, name)
    if kept.counts:
        say(f"    kept though they fail the review: {kept}")
    review = {"faults": written.faults, "kept": kept.as_json()}
    several = wishes.best_of > 1 or wishes.review is not None
    return {
        "candidates": written.candidates if several else None,
        "review": review if wishes.review is not None else None,
    }
