"""`kdexport write` over many briefs, unbroken and killed: no row lost or doubled, the same bytes.

    python bench/writing_killed.py exported/quickstart-int8 recipes/data/briefs.jsonl --briefs 1000

Two command lines write the same briefs. One is left alone; the other is killed (SIGKILL) again and
again, a random while after its journal has grown, and started anew until it ends. Writes JSON to
stdout: texts a minute of the unbroken one, what was done at each kill, and whether the two tables
are equal. Exit code 1 where they are not.
"""

import argparse
import collections
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.record import record, save  # noqa: E402
from kdexport.content.briefs import load_briefs  # noqa: E402
from kdexport.copywriting.rows import journal_path  # noqa: E402
from kdexport.system.journal import file_sha256  # noqa: E402

LOOK_SECONDS = 0.05  # between two looks at the journal
SAME_DAY = {"SOURCE_DATE_EPOCH": "1764288000"}  # rows carry their date


def some_briefs(source: Path, n: int, folder: Path) -> Path:
    """``n`` briefs from all over a file, as it has them."""
    lines = [line for line in source.read_text("utf-8").splitlines() if line.strip()]
    n = min(n, len(lines))
    chosen = folder / "briefs.jsonl"
    chosen.write_text("\n".join(lines[at * len(lines) // n] for at in range(n)) + "\n", "utf-8")
    return chosen


def start(words: Sequence[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "kdexport", "write", *words, "--json"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | SAME_DAY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What a command says at its end."""
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"kdexport write ended with exit code {process.returncode}")
    found: dict[str, Any] = json.loads(said)
    return found


def n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(words: Sequence[str], out: Path, n_kills: int, longest: float) -> list[int]:
    """Kill that many attempts; the lines of the journal at each kill."""
    draw, journal, done = random.Random(0), journal_path(out), []
    while len(done) < n_kills:
        process, before = start(words), n_lines(journal)
        while process.poll() is None and n_lines(journal) <= before:
            time.sleep(LOOK_SECONDS)
        time.sleep(draw.uniform(0, longest))
        process.kill()
        process.communicate()
        if not journal.exists():
            raise SystemExit(f"it ended before kill {len(done) + 1}: give fewer --kills")
        done.append(n_lines(journal))
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description="kdexport write, unbroken and killed.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("briefs", type=Path)
    parser.add_argument("--briefs", dest="n_briefs", type=int, default=1000)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--longest", type=float, default=8.0, help="seconds of work before a kill")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        briefs = some_briefs(given.briefs, given.n_briefs, folder)
        ids = [brief.id for brief in load_briefs(briefs)]
        outs = {way: folder / f"{way}.csv" for way in ("unbroken", "killed")}
        words = {
            way: [
                *(str(given.bundle.resolve()), str(briefs), "--out", str(out)),
                *("--candidates", str(given.candidates)),
            ]
            for way, out in outs.items()
        }
        whole = ended(start(words["unbroken"]))
        done = killed(words["killed"], outs["killed"], given.kills, given.longest)
        ended(start(words["killed"]))
        hashes = {way: file_sha256(out) for way, out in outs.items()}
        with outs["killed"].open(encoding="utf-8", newline="") as file:
            rows = collections.Counter(row["brief"] for row in csv.DictReader(file))
    found = {
        **record(__file__),
        "n_briefs": len(ids),
        "candidates": given.candidates,
        "texts": whole["n_candidates"],
        "seconds": round(whole["seconds"], 1),
        "copies_per_minute": round(60 * whole["n_candidates"] / whole["seconds"], 1),
        "statuses": whole["statuses"],
        "journal_lines_at_kills": done,
        "rows_lost": sum(rows[one] == 0 for one in ids),
        "rows_doubled": sum(rows[one] > 1 for one in ids),
        "same_bytes": hashes["unbroken"] == hashes["killed"],
    }
    print(json.dumps(found, indent=1))
    save(found, given.out)
    raise SystemExit(0 if found["same_bytes"] else 1)


if __name__ == "__main__":
    main()
