"""All proofs of a case: what every distillation does, and what this one asks for besides."""

from collections.abc import Iterator

from kdexport.train.case import Case, Proof
from kdexport.train.proofs import PROOFS
from kdexport.train.proofs_on_files import ON_FILES
from kdexport.train.proofs_on_paths import ON_PATHS
from kdexport.train.proofs_on_wish import ON_WISH


def prove(case: Case) -> Iterator[Proof]:
    """Every proof of `PROOFS`, `ON_FILES`, `ON_PATHS` and `ON_WISH`, one after another."""
    case.student.eval()  # without dropout: what is compared is to be the same
    for rows in (*PROOFS, *ON_FILES, *ON_PATHS, *ON_WISH):
        yield from rows(case)
