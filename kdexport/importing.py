"""Targets that another program computed, for a run: what it is to be asked, and what it said.

For teachers that run elsewhere, on GPUs, in vLLM. The student, the texts and the checks are the
run's own. Everything that needs torch is imported where it is needed.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdexport.console import say, tracked
from kdexport.errors import InputError
from kdexport.files import write_whole
from kdexport.journal import file_sha256, fingerprint
from kdexport.pipeline import Run, only_one, open_run, run_stages
from kdexport.recipe import Recipe

if TYPE_CHECKING:
    from kdexport.train.data import Encoded
    from kdexport.train.imported import Names
    from kdexport.train.teacher import TargetFn

FACTS = "imported.json"  # beside the shards: of which texts they are, and from which files
HOW = "kdexport import-targets RECIPE --texts FILE writes what the teacher is to be asked"


def write_texts(recipe: Recipe, out: Path) -> int:
    """Write the training texts as token ids of the teacher's, JSONL; return how many there are."""
    from kdexport.train.imported import asked_texts

    run = _prepared(recipe)
    examples, names, _ = _texts(run)
    rows = asked_texts(examples, names)
    write_whole(out, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(examples)


def import_targets(recipe: Recipe, files: Sequence[Path]) -> Path:
    """Check files of targets and keep them in the run folder, in place of those that were there.

    Raises InputError for what is wrong in them, and keeps nothing then.
    """
    from kdexport.train.cache import write_shards
    from kdexport.train.imported import read_targets
    from kdexport.train.model import staged_folder

    run = _prepared(recipe)
    with only_one(run.folder):
        examples, names, key = _texts(run)
        top_k = min(recipe.train.top_k, len(names.teacher) - 1)
        _check_room(recipe, examples, top_k, len(names.teacher))
        facts = {
            "texts": key,
            "top_k": top_k,
            "files": {path.name: file_sha256(path) for path in map(_there, files)},
        }
        with staged_folder(run.imported) as staging:
            with tracked("    targets are read", "texts", len(examples)) as progress:

                def counted() -> Any:
                    parts = read_targets(files, examples, names, top_k)
                    for number, part in enumerate(parts, start=1):
                        yield part
                        progress(number, len(examples))

                write_shards(staging, counted())
            (staging / FACTS).write_text(json.dumps(facts, indent=1), "utf-8")
    if recipe.train.targets != "imported":
        say("    they are used where train.targets is imported")
    return run.imported


def imported_targets(run: Run, key: str, examples: "Sequence[Encoded]") -> "TargetFn":
    """The targets of a run that were imported. Raises InputError where they are of other texts."""
    from kdexport.train.cache import TargetCache, fingerprint_examples
    from kdexport.train.columns import read_top_k

    check_imported(run)
    facts = json.loads((run.imported / FACTS).read_text("utf-8"))
    if facts["texts"] != fingerprint(key, fingerprint_examples(examples)):
        raise InputError(
            "these targets are of other texts, or of another tokenizer",
            where=str(run.imported),
            remedy=f"import them anew; {HOW}",
        )
    cache = TargetCache(run.imported)
    return lambda batch: read_top_k(cache.columns(batch))


def imported_fingerprint(run: Run) -> str | None:
    """What a student that learns from imported targets depends on; None where it does not."""
    facts = run.imported / FACTS
    wanted = run.recipe.train.targets == "imported" and facts.is_file()
    return file_sha256(facts) if wanted else None


def check_imported(run: Run) -> None:
    """Refuse to train on imported targets that are not there."""
    if run.recipe.train.targets == "imported" and not (run.imported / FACTS).is_file():
        raise InputError("there are no imported targets", where="train.targets", remedy=HOW)


def _prepared(recipe: Recipe) -> Run:
    """The run with its texts and its untrained student."""
    if recipe.train.across_tokens:
        raise InputError("uld takes no imported targets", where="train.loss")
    run = open_run(recipe)
    run_stages(run, until="student")
    return run


def _texts(run: Run) -> "tuple[Sequence[Encoded], Names, str]":
    """The training texts, both vocabularies, and a fingerprint of the two."""
    import numpy as np

    from kdexport.splits import encode_splits
    from kdexport.train.cache import fingerprint_examples
    from kdexport.train.imported import Names
    from kdexport.train.model import load_config, load_facts, load_model, load_tokenizer

    student = load_model(run.student_init)
    kept_ids = load_facts(run.student_init).get("kept_ids")
    examples = encode_splits(run, load_tokenizer(run.student_init), student).train
    teacher = np.arange(student.config.vocab_size) if kept_ids is None else np.asarray(kept_ids)
    names = Names(teacher, load_config(run.teacher.path).vocab_size)
    key = fingerprint(run.teacher.fingerprint, kept_ids)
    return examples, names, fingerprint(key, fingerprint_examples(examples))


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
