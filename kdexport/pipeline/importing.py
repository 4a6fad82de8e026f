"""Targets that another program computed, for a run: what it is to be asked, and what it said.

For teachers that run elsewhere, on GPUs, in vLLM. The student, the texts and the checks are the
run's own. Everything that needs torch is imported where it is needed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdexport.errors import InputError
from kdexport.model_folder import has_weights
from kdexport.pipeline.run import Run, only_one, open_run, run_stages
from kdexport.recipe import Recipe
from kdexport.system.console import say, tracked
from kdexport.system.files import write_whole
from kdexport.system.journal import file_sha256, fingerprint

if TYPE_CHECKING:
    from kdexport.train.data import Encoded
    from kdexport.train.imported import Names
    from kdexport.train.teacher import TargetFn

FACTS = "imported.json"  # beside the shards: of which texts they are, and from which files
HOW = "kdexport import-targets RECIPE --texts FILE writes what the teacher is to be asked"


def write_texts(recipe: Recipe, out: Path) -> int:
    """Write the texts as token ids of the teacher's, JSONL; return how many there are.

    Those of training come first, then those that the student is judged by.
    """
    from kdexport.train.imported import asked_texts

    texts = _texts(_prepared(recipe))
    rows = asked_texts(texts.every, texts.names)
    write_whole(out, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(texts.every)


def import_targets(recipe: Recipe, files: Sequence[Path]) -> Path:
    """Check files of targets and keep them in the run folder, in place of those that were there.

    Held-out texts may be in none of them: the teacher is asked of those, then. Raises InputError
    for what is wrong, and keeps nothing.
    """
    from kdexport.train.cache import write_shards
    from kdexport.train.model import staged_folder

    run = _prepared(recipe)
    with only_one(run.folder):
        texts = _texts(run)
        top_k = min(recipe.train.top_k, len(texts.names.teacher) - 1)
        _check_room(recipe, texts.every, top_k, len(texts.names.teacher))
        facts: dict[str, Any] = {
            "texts": texts.key,
            "top_k": top_k,
            "files": {path.name: file_sha256(path) for path in map(_there, files)},
        }
        with staged_folder(run.imported) as staging:
            held_out = HeldOut(texts)
            with tracked("    targets are read", "texts", len(texts.every)) as progress:
                write_shards(staging, held_out.parted(files, top_k, progress))
            if held_out.is_whole(files):
                for split, parts in held_out.parts.items():
                    (staging / split).mkdir()
                    write_shards(staging / split, parts)
                facts["held_out"] = held_out.prints
            (staging / FACTS).write_text(json.dumps(facts, indent=1), "utf-8")
    if recipe.train.targets != "imported":
        say("    they are used where train.targets is imported")
    return run.imported


def imported_targets(run: Run, key: str, examples: "Sequence[Encoded]") -> "TargetFn":
    """The targets of a run that were imported. Raises InputError where they are of other texts."""
    from kdexport.train.cache import TargetCache, fingerprint_examples
    from kdexport.train.columns import read_top_k

    check_imported(run)
    if _facts(run)["texts"] != fingerprint(key, fingerprint_examples(examples)):
        raise _of_other_texts(run)
    cache = TargetCache(run.imported)
    return lambda batch: read_top_k(cache.columns(batch))


def imported_fingerprint(run: Run) -> str | None:
    """What a student that learns from imported targets depends on; None where it does not."""
    facts = run.imported / FACTS
    wanted = run.recipe.train.targets == "imported" and facts.is_file()
    return file_sha256(facts) if wanted else None


def check_imported(run: Run) -> None:
    """Refuse to train on imported targets that are not there."""
    if run.recipe.train.targets != "imported":
        return
    if not (run.imported / FACTS).is_file():
        raise InputError("there are no imported targets", where="train.targets", remedy=HOW)
    if asks_teacher(run) and not has_weights(run.teacher.path):
        raise InputError(
            "the teacher is to be asked of held-out texts, and its weights are not there",
            where=str(run.teacher.path),
            remedy=f"import targets of these texts too; {HOW}",
        )


def imported_held_out(run: Run, split: str, examples: "Sequence[Encoded]") -> "TargetFn | None":
    """The same of held-out texts; None where they were not imported. Raises as the other."""
    from kdexport.train.cache import TargetCache, fingerprint_examples
    from kdexport.train.columns import read_top_k

    prints = _facts(run).get("held_out")
    if not prints:
        return None
    if any(prints[split].get(e.example_id) != fingerprint_examples([e]) for e in examples):
        raise _of_other_texts(run)
    cache = TargetCache(run.imported / split)
    return lambda batch: read_top_k(cache.columns(batch))


def asks_teacher(run: Run) -> bool:
    """Whether training asks the teacher itself: not where all of its targets were imported."""
    wish = run.recipe.train
    return (
        wish.targets != "imported" or wish.on_policy is not None or not _facts(run).get("held_out")
    )


def _facts(run: Run) -> dict[str, Any]:
    file = run.imported / FACTS
    facts: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return facts


def _of_other_texts(run: Run) -> InputError:
    return InputError(
        "these targets are of other texts, or of another tokenizer",
        where=str(run.imported),
        remedy=f"import them anew; {HOW}",
    )


def _prepared(recipe: Recipe) -> Run:
    """The run with its texts and its untrained student, without the teacher's weights if it can."""
    if recipe.train.across_tokens:
        raise InputError("uld takes no imported targets", where="train.loss")
    if recipe.data.stream:
        raise InputError("streamed pairs take no imported targets", where="data.stream")
    train = recipe.train.model_copy(update={"targets": "imported"})
    without = recipe.model_copy(update={"train": train})
    recipe = recipe if without.opens_teacher else without
    run = open_run(recipe)
    run_stages(run, until="student")
    return run


@dataclass(frozen=True)
class Texts:
    """What a teacher is asked of: training texts, the others by split, and both vocabularies.

    ``key``: a fingerprint of training texts and vocabularies.
    """

    train: "Sequence[Encoded]"
    held_out: "Mapping[str, Sequence[Encoded]]"
    names: "Names"
    key: str

    @property
    def every(self) -> "list[Encoded]":
        """Each text once; training texts may stand in for validation texts."""
        known = {example.example_id for example in self.train}
        others = (example for examples in self.held_out.values() for example in examples)
        return [*self.train, *(e for e in others if e.example_id not in known)]


class HeldOut:
    """Targets of held-out texts, put aside while those of training are written."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.parts: dict[str, list[Any]] = {split: [] for split in texts.held_out}

    def parted(self, files: Sequence[Path], top_k: int, progress: Any) -> Iterator[Any]:
        """The training texts of files with their columns."""
        from kdexport.train.imported import read_targets

        texts = self.texts
        trained = {example.example_id for example in texts.train}
        held_out = {
            split: {example.example_id: example for example in examples}
            for split, examples in texts.held_out.items()
        }
        parts = read_targets(files, texts.every, texts.names, top_k, needed=trained)
        for number, (examples, columns) in enumerate(parts, start=1):
            name = examples[0].example_id
            for split, wanted in held_out.items():
                if (own := wanted.get(name)) is not None:  # of a training text, its completion
                    last = {key: values[-own.n_targets :] for key, values in columns.items()}
                    self.parts[split].append(([own], last))
            if name in trained:
                yield examples, columns
            progress(number, len(texts.every))

    def is_whole(self, files: Sequence[Path]) -> bool:
        """Whether all are there; False for none. Raises InputError for some."""
        every = {example.example_id for example in self.texts.every}
        wanted = every - {example.example_id for example in self.texts.train}
        found = {own.example_id for parts in self.parts.values() for (own,), _ in parts} & wanted
        if found and found != wanted:
            raise InputError(
                f"{len(wanted - found)} of {len(wanted)} held-out texts are in no file",
                where=", ".join(map(str, files)),
                remedy="have targets computed for every line that --texts writes",
            )
        return found == wanted

    @property
    def prints(self) -> dict[str, dict[str, str]]:
        """A fingerprint of each text, by split."""
        from kdexport.train.cache import fingerprint_examples

        return {
            split: {e.example_id: fingerprint_examples([e]) for e in examples}
            for split, examples in self.texts.held_out.items()
        }


def _texts(run: Run) -> Texts:
    import numpy as np

    from kdexport.pipeline.splits import encode_splits
    from kdexport.train.cache import fingerprint_examples
    from kdexport.train.imported import Names
    from kdexport.train.model import load_config, load_facts, load_model, load_tokenizer

    student = load_model(run.student_init)
    kept_ids = load_facts(run.student_init).get("kept_ids")
    data = encode_splits(run, load_tokenizer(run.student_init), student)
    teacher = np.arange(student.config.vocab_size) if kept_ids is None else np.asarray(kept_ids)
    names = Names(teacher, load_config(run.teacher.path).vocab_size)
    key = fingerprint(run.teacher.fingerprint, kept_ids)
    held_out = {"validation": data.validation, "test": data.test}
    return Texts(data.train, held_out, names, fingerprint(key, fingerprint_examples(data.train)))


def _check_room(recipe: Recipe, examples: "Sequence[Encoded]", top_k: int, vocab_size: int) -> None:
    from kdexport.train.columns import top_k_bytes

    n_bytes = top_k_bytes(vocab_size, top_k) * sum(example.n_targets for example in examples)
    if n_bytes > recipe.train.cache_gb * 1e9:
        raise InputError(
            f"the targets would take {n_bytes / 1e9:.3g} GB; the cap is {recipe.train.cache_gb} GB",
            where="train.cache_gb",
            remedy="raise it, or lower train.top_k",
        )


def _there(path: Path) -> Path:
    if not path.is_file():
        raise InputError("there is no such file", where=str(path))
    return path
