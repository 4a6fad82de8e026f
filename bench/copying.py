"""How much of the copy is the brief's own words, and how near the student is on the rest.

    python bench/copying.py exported/quickstart-int8

A small teacher often answers with the facts as they stand. Copying is easy to learn, so a mean KL
over all texts says less than the two groups apart: texts that add no word to their prompt, and
those that do. Reads a bundle with a quality reference; writes JSON to stdout.
"""

import json
import sys
from pathlib import Path

import numpy as np

from kdexport.content.checks import words_of
from kdexport.runtime.quality import kl_per_token, load_reference, log_softmax
from kdexport.runtime.session import open_session
from kdexport.runtime.text import load_text


def main(folder: Path) -> None:
    reference = load_reference(folder / "reference.npz")
    session, codec = open_session(folder), load_text(folder)
    kl: dict[str, list[np.ndarray]] = {"copied": [], "written": []}
    for begin, end in zip(reference.offsets, reference.offsets[1:], strict=False):
        rows = (reference.target >= begin) & (reference.target < end)
        ids = reference.ids[begin:end].astype(np.int64)
        targets = reference.target[rows] - begin
        logits = session.score(ids.tolist())[targets - 1]
        prompt, copy = (codec.decode(part.tolist()) for part in np.split(ids, targets[:1]))
        group = "copied" if set(words_of(copy)) <= set(words_of(prompt)) else "written"
        kl[group].append(kl_per_token(reference, rows, log_softmax(logits.astype(np.float64))))
    found = {
        group: {
            "texts": len(values),
            "tokens": int(sum(map(len, values))),
            "kl_mean": round(float(np.concatenate(values).mean()), 4) if values else None,
        }
        for group, values in kl.items()
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
