"""The other tools' environments, and how they are asked: one process a tool, JSON in and out."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS = 300
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Tool:
    """A tool's interpreter, the script that opens bundles with it, and a file that tells of it."""

    program: str
    script: str
    stamp: str


NODE = shutil.which("node") or "node"
TOOLS: Mapping[str, Tool] = {
    "optimum": Tool(".peers/optimum/bin/python", "open_optimum.py", ".peers/optimum/.installed"),
    "genai": Tool(
        ".elsewhere/lm-eval/bin/python", "open_genai.py", ".elsewhere/lm-eval/.installed"
    ),
    "lm-eval": Tool(
        ".elsewhere/lm-eval/bin/python", "open_lm_eval.py", ".elsewhere/lm-eval/.installed"
    ),
    "transformers.js": Tool(
        NODE, "node/open_transformers.mjs", "tests/elsewhere/node/node_modules/.installed"
    ),
    "onnxruntime-web": Tool(
        NODE, "node/open_web.mjs", "tests/elsewhere/node/node_modules/.installed"
    ),
}


def ask(name: str, requests: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A tool's answers, in the order of the requests: each what was asked for, or its error."""
    tool = TOOLS[name]
    if not (ROOT / tool.stamp).exists():
        pytest.fail(f"{name} is not installed: make test-elsewhere")
    ran = subprocess.run(
        [ROOT / tool.program, HERE / tool.script],
        input=json.dumps(list(requests)),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=ROOT,
        env=os.environ | QUIET,
        check=False,
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("answers: ")]
    if ran.returncode or len(lines) != 1:
        pytest.fail(f"{name} ended with {ran.returncode}: {(ran.stderr or ran.stdout)[-2000:]}")
    answers: list[Any] = json.loads(lines[0].removeprefix("answers: "))
    assert len(answers) == len(requests)
    return answers
