"""A run that is killed at random moments ends with the weights of one that is not."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.kills import N_EACH
from tests.models import make_gpt2

ROOT = Path(__file__).parent.parent
SEED, N_STEPS = 0, 36
RECIPE = f"""\
name: tiny
teacher: {{source: ../teacher}}
data:
  briefs: ../briefs.jsonl
  generate: {{temperature: 1.0, variants: 6}}
student: {{n_layers: 2}}
train:
  {{task_weight: 0, lr: 1e-3, batch_size: 4, max_steps: {N_STEPS}, evaluate_steps: 4,
   checkpoint_seconds: 0.1, n_samples: 1, n_threads: 1}}
"""


def test_killed_at_twenty_moments_a_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    """GPT-2 has dropout: the random state has to come back, too."""
    make_gpt2(tmp_path / "teacher", n_layers=4)
    splits = ["train"] * 10 + ["validation"] * 3 + ["test"] * 3
    rows = [
        {"id": f"b{n}", "product": f"Tea {n}", "channel": "ad_headline", "split": split}
        for n, split in enumerate(splits)
    ]
    (tmp_path / "briefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(RECIPE)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.kills", str(tmp_path), str(SEED)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    log = tmp_path / "killed" / "log.txt"
    said = log.read_text("utf-8") if log.exists() else ""
    assert ran.returncode == 0, ran.stderr + said
    print(f"seed {SEED}: {ran.stdout}")
    found = json.loads(ran.stdout)
    assert {row["code"] for row in found["kills"]} == {-9}, said
    hits = Counter(row["hit"] for row in found["kills"] if row.get("hit"))
    assert hits.total() >= sum(N_EACH.values()) == 20
    assert hits.keys() == N_EACH.keys()
    one, other = found["sha256"]
    assert one == other
    last = said[said.rindex("[1/4]") :]
    assert last.count("done before") == 3  # the last attempt begins in the fourth stage
    assert not (tmp_path / "killed" / "runs" / "tiny" / "checkpoints").exists()
    for name, every in (("metrics", 1), ("samples", 4)):
        lines = (tmp_path / "killed" / "runs" / "tiny" / f"{name}.jsonl").read_text("utf-8")
        rows = [json.loads(line) for line in lines.splitlines()]
        of_steps = [row["step"] for row in rows if "evaluation" not in row]
        n_each = sum(row["step"] == 4 and "evaluation" not in row for row in rows)
        assert n_each
        assert of_steps == [
            step for step in range(every, N_STEPS + 1, every) for _ in range(n_each)
        ]
        evaluated = [row["step"] for row in rows if "evaluation" in row]
        assert evaluated == ([] if name == "samples" else list(range(4, N_STEPS + 1, 4)))
