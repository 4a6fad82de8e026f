"""lm-eval scores a bundle with its onnxruntime backends on a task of some lines."""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from lm_eval import simple_evaluate
from lm_eval.__main__ import cli_evaluate
from lm_eval.tasks import TaskManager
from serve import serve

DOCUMENT = Path(__file__).parents[2] / "docs" / "quality.md"


def documented() -> tuple[list[str], dict[str, Any]]:
    """The command that docs/quality.md gives, word by word, and the task that it shows."""
    text = DOCUMENT.read_text("utf-8")
    command = re.search(r"^    (lm_eval .*)$", text, re.MULTILINE)
    task = re.search(r"```yaml\n(task: .*?)```", text, re.DOTALL)
    assert command is not None and task is not None
    return command[1].split(), yaml.safe_load(task[1])


def answer(request: dict[str, Any]) -> list[list[float]]:
    """The log-likelihood of each choice after each prompt; ``command``: told by lm-eval's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = folder / "lines.jsonl"
        lines.write_text("\n".join(json.dumps(row) for row in request["rows"]), "utf-8")
        files = {"data_files": {"test": str(lines)}, "cache_dir": str(folder / "cache")}
        task = documented()[1] | {"dataset_kwargs": files}
        (folder / "copy.yaml").write_text(json.dumps(task), "utf-8")  # JSON is YAML, too
        score = by_command if request["command"] else by_function
        rows = sorted(score(request, folder), key=lambda row: int(row["doc_id"]))
        return [[float(found) for found, _ in row["filtered_resps"]] for row in rows]


def by_command(request: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What the command that a user would type leaves; it looks at all of lm-eval's tasks first."""
    sys.argv, _ = documented()
    here = {
        "--model": request["backend"],
        "--model_args": f"pretrained={request['bundle']}",
        "--include_path": str(folder),
    }
    for option, value in here.items():
        sys.argv[sys.argv.index(option) + 1] = value
    sys.argv += ["--log_samples", "--output_path", str(folder / "out")]
    cli_evaluate()
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    return [json.loads(line) for line in samples.read_text("utf-8").splitlines()]


def by_function(request: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The same, of our task alone; ``url``: of a server that is asked instead of the bundle."""
    where = {"pretrained": request["bundle"]}
    if "url" in request:
        where = {
            "base_url": request["url"],
            "model": request["name"],
            "tokenizer": request["bundle"],
        }
    found: dict[str, Any] = simple_evaluate(
        model=request["backend"],
        model_args=where,
        tasks=["copy"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )
    samples: list[dict[str, Any]] = found["samples"]["copy"]
    return samples


serve(answer)
