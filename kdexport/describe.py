"""What `inspect` and `doctor` print for a person."""

import importlib.metadata
import importlib.util
from typing import Any

from kdexport.bundle import Bundle

PARTS: dict[str, tuple[str, ...]] = {
    "generate, inspect, verify, bench": ("onnxruntime", "tokenizers", "numpy", "jinja2"),
    "distill (extra: train)": ("torch", "transformers", "optimum", "safetensors", "gguf"),
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


def machine_rows() -> dict[str, Any]:
    """This machine and, for each part of kdexport, which libraries are there."""
    from kdexport.machine import machine_facts

    parts = {
        part: {name: _version(name) for name in libraries} for part, libraries in PARTS.items()
    }
    return {"machine": machine_facts().model_dump(mode="json"), "parts": parts}


def describe_machine(rows: dict[str, Any]) -> Any:
    """The doctor's findings as a rich table."""
    machine = rows["machine"]
    table = _two_columns("doctor")
    table.add_row("CPU", f"{machine['cpu']}, {machine['n_cores']} cores")
    table.add_row("features", ", ".join(machine["features"]) or "none known")
    table.add_row("memory", f"{machine['memory_gb']} GB")
    table.add_row("system", f"{machine['os']}, Python {machine['python']}")
    for part, libraries in rows["parts"].items():
        missing = [name for name, version in libraries.items() if version is None]
        found = ", ".join(f"{name} {version}" for name, version in libraries.items() if version)
        state = f"[red]missing: {', '.join(missing)}[/red]" if missing else "[green]ready[/green]"
        table.add_row(part, f"{state}  {found}")
    return table


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
