"""The process's streams: kept usable, read, and written to in the two ways that results have."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from kdexport.errors import InputError


def settle_streams() -> None:
    """Have somewhere to write to, where a stream is closed or knows few characters."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def forget_stdout() -> None:
    """Lose what stdout still holds: nobody can take it, and Python would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_stdin() -> str:
    """All of stdin; InputError where it is not UTF-8."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise InputError("is not UTF-8", where="stdin") from None


def print_json(value: Any) -> None:
    """A result for a machine, to stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_rich(renderable: Any) -> None:
    """A result for a person, to stdout."""
    stdout_console().print(renderable)


def stdout_console() -> Any:
    """Stdout; what is no terminal gets lines of 120 columns."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)
