"""What `inspect`, `doctor` and `export` print for a person."""

import importlib.metadata
import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdexport.bundle import Bundle, Manifest

PARTS: dict[str, tuple[str, ...]] = {
    "generate, inspect, verify, bench": (
        "onnxruntime",
        "tokenizers",
        "numpy",
        "jinja2",
        "pydantic",
    ),
    "distill (extra: train)": (
        "torch",
        "transformers",
        "optimum",
        "safetensors",
        "gguf",
        "accelerate",
        "filelock",
    ),
    "export (extra: export)": ("onnx", "onnx_ir", "mobius", "torch", "transformers"),
}
DISTRIBUTIONS = {"mobius": "mobius-onnx", "onnx_ir": "onnx-ir"}


def describe_bundle(bundle: Bundle) -> Any:
    """A bundle's manifest as a rich table; what it says is text, never rich's markup."""
    from rich.text import Text

    manifest = bundle.manifest
    model = manifest.model
    rows = {
        "name": manifest.name,
        "scheme": manifest.scheme,
        "model": f"{model.family}, {model.n_parameters / 1e6:.1f} M parameters, "
        f"{model.n_layers} layers, vocabulary of {model.vocab_size}, "
        f"texts up to {model.max_length} tokens",
        "keys and values": _kept(manifest),
        "on disk": f"{bundle.n_bytes / 1e6:.1f} MB "
        f"({bundle.n_bytes / model.n_parameters:.2f} bytes a parameter)",
        "teacher": manifest.teacher or "unknown",
        "licence": manifest.licence or "unknown",
        "made": manifest.created,
        "made with": ", ".join(f"{name} {v}" for name, v in manifest.versions.items()),
    }
    if manifest.parent:
        rows["made from"] = f"{manifest.parent.name} ({manifest.parent.manifest_sha256[:12]}…)"
    if manifest.parity:
        rows["parity"] = (
            f"max |Δlogit| {manifest.parity.max_abs_logit_diff:.2g}, "
            f"max KL {manifest.parity.max_kl:.2g} nats over {manifest.parity.n_tokens} tokens"
        )
    if manifest.recipe_fingerprint:
        rows["recipe"] = f"{manifest.recipe_fingerprint[:12]}…"
    table = _two_columns(str(bundle.path))
    for name, value in rows.items():
        table.add_row(name, Text(value))
    for name, facts in manifest.files.items():
        size = f"{facts.bytes / 1e6:.2f} MB  sha256 {facts.sha256[:12]}…"
        table.add_row(Text(f"  {name}"), Text(size))
    return table


def describe_ledger(path: Path) -> Any:
    """A mix of kernels as a rich table: products that got more than the cheapest kernel first."""
    from rich.table import Table

    rows = json.loads(path.read_text("utf-8"))
    rows.sort(key=lambda row: (-row["bits"], -row["kl"]))
    table = Table(title=str(path), title_justify="left")
    table.add_column("product", overflow="fold")
    for name in ("kernel", "bits", "MB", "KL, nats"):
        table.add_column(name, justify="right")
    for row in rows:
        size = f"{row['n_bytes'] / 1e6:.2f}"
        table.add_row(row["product"], row["kernel"], str(row["bits"]), size, f"{row['kl']:.5f}")
    total = f"{sum(row['n_bytes'] for row in rows) / 1e6:.2f}"
    table.add_row("sum", "", "", total, f"{sum(row['kl'] for row in rows):.5f}")
    return table


def machine_rows(*, probes: bool = True) -> dict[str, Any]:
    """This machine, for each part of kdexport which libraries are there, and what probes found."""
    from kdexport.system.machine import machine_facts, physical_cores

    parts = {
        part: {name: _version(name) for name in libraries} for part, libraries in PARTS.items()
    }
    rows: dict[str, Any] = {
        "machine": machine_facts().model_dump(mode="json"),
        "n_threads": physical_cores(),
        "parts": parts,
    }
    if probes:
        from kdexport.runtime.probes import probe_machine

        rows["probes"] = probe_machine().model_dump(mode="json")
    return rows


def describe_machine(rows: dict[str, Any]) -> Any:
    """The doctor's findings as rich tables, one under the other."""
    from rich.console import Group

    machine = rows["machine"]
    table = _two_columns("doctor")
    table.add_row("CPU", f"{machine['cpu']}, {machine['n_cores']} cores")
    table.add_row("features", ", ".join(machine["features"]) or "none known")
    quota = machine["cpu_quota"]
    limit = f", of {quota:.2g} CPUs' time that this container has" if quota else ""
    table.add_row("threads", f"{rows['n_threads']}, unless told otherwise{limit}")
    table.add_row("memory", f"{machine['memory_gb']} GB")
    table.add_row("system", f"{machine['os']}, Python {machine['python']}")
    for part, libraries in rows["parts"].items():
        missing = [name for name, version in libraries.items() if version is None]
        found = ", ".join(f"{name} {version}" for name, version in libraries.items() if version)
        state = f"[red]missing: {', '.join(missing)}[/red]" if missing else "[green]ready[/green]"
        table.add_row(part, f"{state}  {found}")
    asked = rows.get("probes")
    return Group(table, *_describe_probes(asked)) if asked else table


def _describe_probes(found: dict[str, Any]) -> list[Any]:
    """What ONNX Runtime's products compute here, how fast, and which scheme that speaks for."""
    from rich.text import Text

    colours = {"ok": "green", "slow": "yellow", "wrong": "red"}
    asked = _two_columns(f"probes ({found['seconds']:.1f} s)")
    for probe in found["probes"]:
        verdict = (probe["verdict"], colours[probe["verdict"]])
        asked.add_row(probe["name"], Text.assemble(verdict, f"  {probe['why']}"))
    advice = _two_columns("recommended")
    for row in found["recommended"]:
        scheme = (f"--scheme {row['scheme']}", "bold")
        advice.add_row(row["need"], Text.assemble(scheme, f": {row['why']}"))
    return [asked, _describe_speeds(found), advice]


def _describe_speeds(found: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    title = f"speed of one product, {found['n_threads']} threads"
    table = Table(title=Text(title, style="bold"), title_justify="left")
    table.add_column("kernel", style="cyan", no_wrap=True)
    for name in ("one row, ms", "GB/s of weights", "128 rows, ms", "GFLOPS"):
        table.add_column(name, justify="right")
    for speed in found["speeds"]:
        kernel, *numbers = speed.values()
        table.add_row(kernel, *map(str, numbers))
    return table


def proof_rows(proofs: Sequence[Any]) -> list[dict[str, Any]]:
    """Proofs as JSON values; a measure that is no finite number is None."""
    return [
        {
            "name": proof.name,
            "ok": proof.ok,
            "measured": proof.measured if math.isfinite(proof.measured) else None,
            "tolerance": proof.tolerance,
            "note": proof.note,
        }
        for proof in proofs
    ]


def describe_proofs(rows: Sequence[dict[str, Any]]) -> Any:
    """Proofs as a rich table, those that fail first."""
    from rich.table import Table
    from rich.text import Text

    failed = sum(not row["ok"] for row in rows)
    title = f"{len(rows)} proofs, {failed or 'none'} failed"
    table = Table(title=Text(title, style="bold"), title_justify="left")
    table.add_column("proof", style="cyan", overflow="fold")
    for name in ("measured", "allowed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("of what", overflow="fold")
    for row in sorted(rows, key=lambda row: row["ok"]):
        measured = "not finite" if row["measured"] is None else f"{row['measured']:.2g}"
        verdict = Text("ok", style="green") if row["ok"] else Text("failed", style="bold red")
        allowed = f"{row['tolerance']:.2g}"
        table.add_row(Text(row["name"]), measured, allowed, verdict, Text(row["note"]))
    return table


def describe_sweep(rows: Sequence[dict[str, Any]]) -> Any:
    """The trials of a sweep as a rich table, in the order given."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{len(rows)} trials", title_justify="left", title_style="bold")
    table.add_column("trial", justify="right")
    keys = list(rows[0]["params"]) if rows else []
    for name in (*keys, "KL, nats", "minutes"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("")
    for row in rows:
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row["params"].values()]
        score = "" if row["score"] is None else f"{row['score']:.4f}"
        cells = [str(row["number"]), *values, score, f"{row['seconds'] / 60:.1f}", row["state"]]
        table.add_row(*map(Text, cells), style="bold" if row is rows[0] else "")
    return table


def _kept(manifest: Manifest) -> str:
    """What a bundle's texts take while they are written."""
    kept = f"{manifest.kv_cache}, {manifest.token_bytes:,} bytes a token in memory"
    batches = manifest.of_graph(manifest.graphs.prefill)
    if batches.kv_cache == manifest.kv_cache:
        return kept
    return f"{kept}; in batches, with AMX, {batches.kv_cache}, {batches.token_bytes:,} bytes"


def _version(module: str) -> str | None:
    """The installed version of a library, found without importing it."""
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def _two_columns(title: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold"), title_justify="left", show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    return table
