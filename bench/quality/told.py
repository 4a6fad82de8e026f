"""How an arm tells what it did; standard library only, for every environment."""

import json
import time
from typing import Any

from bench.training.task import peak_rss_mb


class CpuTime:
    """In place of the module ``time``: minutes of training are minutes of CPU, of all threads.

    What else the machine does then costs no arm a step.
    """

    monotonic = staticmethod(time.process_time)


def tell(n_steps: int, seconds: float, cpu_before: float, **more: Any) -> None:
    """Print one JSON object: steps, CPU seconds of the budget, and of the process since then."""
    found = {
        "n_steps": n_steps,
        "clock_s": round(seconds, 2),
        "cpu_s": round(time.process_time() - cpu_before, 2),
        "peak_rss_mb": peak_rss_mb(),
    }
    print(json.dumps({**found, **more}))
