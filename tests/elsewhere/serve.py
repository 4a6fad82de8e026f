"""The other side of `environments.ask`: standard library only, it runs in every environment."""

import json
import sys
from collections.abc import Callable
from typing import Any


def serve(answer: Callable[[dict[str, Any]], Any]) -> None:
    """Answer each request; what one raises is its answer, and the others go on."""
    answers = []
    for request in json.load(sys.stdin):
        try:
            answers.append(answer(request))
        except Exception as error:
            answers.append(f"{type(error).__name__}: {error}")
    print("\nanswers: " + json.dumps(answers))
