"""Where the time of one token goes, operator by operator.

    python bench/operators.py exported/quickstart-int8 --depth 128 --rows 32

ONNX Runtime's own profile of the bundle's graph while it decodes; profiling slows small operators
down, so the shares say more than the sum. Writes JSON to stdout.
"""

import argparse
import collections
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.record import record, save  # noqa: E402
from kdexport.bundle import open_bundle  # noqa: E402
from kdexport.runtime.cpu import suits_many_tokens  # noqa: E402
from kdexport.runtime.session import Session  # noqa: E402
from kdexport.system.machine import physical_cores  # noqa: E402

N_WARM, N_TOKENS = 16, 64
SIZED = ("MatMul", "MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")


def profiled(graph: Path, prefix: Path) -> Any:
    """A session as the runtime opens it, that writes a profile."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def decode(session: Session, depth: int, n_rows: int) -> None:
    """Read ``depth`` tokens of each text and write some more, greedily."""
    cache = session.new_cache(n_rows, depth + N_WARM + N_TOKENS)
    prompts = np.random.default_rng(0).integers(0, session.vocab_size, (n_rows, depth))
    logits = session.run(prompts, cache)
    for _ in range(N_WARM + N_TOKENS):
        logits = session.run(logits.argmax(-1)[:, None], cache)


def width(event: Any, side: str) -> int:
    """The last dimension of the first value that a node reads or makes."""
    (shape,) = event["args"][f"{side}_type_shape"][0].values()
    return int(shape[-1])


def shares(profile: Path) -> dict[str, dict[str, float]]:
    """Milliseconds and calls of each operator, per token that all rows decode."""
    events = json.loads(profile.read_text("utf-8"))
    begins = [event["ts"] for event in events if event["name"] == "model_run"]
    milliseconds: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    for event in events:
        if not event["name"].endswith("_kernel_time") or event["ts"] < begins[-N_TOKENS]:
            continue
        name = event["args"]["op_name"]
        if name in SIZED:
            name += f" {width(event, 'input')} -> {width(event, 'output')}"
        milliseconds[name] += event["dur"] / 1000
        calls[name] += 1
    return {
        name: {"ms": round(ms / N_TOKENS, 3), "calls": round(calls[name] / N_TOKENS, 1)}
        for name, ms in milliseconds.most_common()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of one token by operator.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--depth", type=int, default=128)
    parser.add_argument("--rows", type=int, default=1, help="texts side by side")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    graphs = bundle.manifest.graphs
    name = (
        graphs.prefill if given.rows > 1 and suits_many_tokens(bundle.manifest) else graphs.decode
    )
    with tempfile.TemporaryDirectory() as folder:
        graph = profiled(bundle.file(name), Path(folder) / "profile")
        session = Session(bundle.manifest.of_graph(name), graph, graph=name)
        decode(session, given.depth, given.rows)
        found = shares(Path(graph.end_profiling()))
    result = {
        **record(__file__),
        "bundle": bundle.manifest.name,
        "scheme": bundle.manifest.scheme,
        "depth": given.depth,
        "rows": given.rows,
        "operators": found,
    }
    print(json.dumps(result, indent=1))
    save(result, given.out)


if __name__ == "__main__":
    main()
