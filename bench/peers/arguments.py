"""The words of the command: what is measured, how much of it, and what is refused."""

import argparse
from dataclasses import replace
from pathlib import Path

from bench.peers.measure import Settings
from bench.peers.prepare import PEERS
from kdexport.errors import InputError
from kdexport.system.console import say

QUICK = Settings(n_rounds=2, n_deep_rounds=1, n_opens=1, n_windows=2, n_step_windows=1)


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench/peers.py",
        description="kdexport beside PyTorch, optimum, onnxruntime-genai and llama.cpp.",
    )
    parser.add_argument("--model", help="its source [default: the quickstart recipe's teacher]")
    parser.add_argument("--only", metavar="ARM,ARM", help="these arms only")
    parser.add_argument(
        "--bundle", action="append", default=[], metavar="NAME=FOLDER", help="a further arm"
    )
    parser.add_argument("--allow-missing", action="store_true", help="go on without some peers")
    parser.add_argument("--quick", action="store_true", help="a few minutes; says little")
    parser.add_argument("--no-fidelity", action="store_true", help="speed and memory only")
    parser.add_argument("--text", type=Path, help="English text instead of the corpus")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write all numbers there")
    for option in ("threads", "prompt", "new", "long", "deep", "rounds", "deep-rounds"):
        value = getattr(Settings, f"n_{option.replace('-', '_')}")
        parser.add_argument(f"--{option}", type=int, metavar="N", help=f"[default: {value}]")
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    return parser.parse_args(words)


def settings_of(given: argparse.Namespace) -> Settings:
    """How much to measure."""
    settings = replace(QUICK if given.quick else Settings(), seed=given.seed)
    for name in ("threads", "prompt", "new", "long", "deep", "rounds", "deep_rounds"):
        value = getattr(given, name)
        if value is not None:
            least = {"new": 2, "deep_rounds": 0}.get(name, 1)
            if value < least:
                raise InputError(f"--{name.replace('_', '-')} {value}: at least {least}")
            settings = replace(settings, **{f"n_{name}": value})
    return replace(settings, n_windows=0) if given.no_fidelity else settings


def wanted_arms(given: argparse.Namespace) -> tuple[list[str], dict[str, Path]]:
    """The names of all arms that are wanted, and the folders of the user's own bundles."""
    from kdexport.export.quantize import SCHEMES

    bundles: dict[str, Path] = {}
    for text in given.bundle:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise InputError(f"--bundle {text!r} is not NAME=FOLDER")
        bundles[name] = Path(folder).resolve()
    known = ["torch-fp32", *SCHEMES, "int8-calibrated", *bundles, *PEERS]
    if len(set(known)) < len(known):
        raise InputError("a --bundle has the name of another arm", remedy="rename it")
    wanted = given.only.split(",") if given.only else known
    strangers = [name for name in wanted if name not in known]
    if strangers:
        raise InputError(f"there is no arm {strangers[0]!r}", remedy="use " + ", ".join(known))
    return installed_arms([n for n in known if n in wanted], given.allow_missing), bundles


def installed_arms(names: list[str], allow_missing: bool) -> list[str]:
    """The arms whose environments are there; refuses where some are not, unless that is allowed."""
    missing = [name for name in names if name in PEERS and not PEERS[name].installed]
    if missing and not allow_missing:
        raise InputError(
            f"not installed: {', '.join(missing)}",
            remedy="run make peers, or go on without them by --allow-missing",
        )
    if missing:
        say(f"going on without {', '.join(missing)}: not installed")
    return [name for name in names if name not in missing]
