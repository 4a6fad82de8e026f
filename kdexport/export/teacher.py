"""A teacher's own int8 bundle: it writes a run's data, and is a row of a bench."""

import shutil
from pathlib import Path

from kdexport.bundle import Bundle
from kdexport.export.bundles import export_bundle
from kdexport.export.quantize import quantize_bundle
from kdexport.sources import ResolvedModel


def export_teacher(model: ResolvedModel, out: Path, *, name: str, scratch: Path) -> Bundle:
    """Write a teacher's int8 bundle; the float32 one lies at ``scratch`` meanwhile.

    Raises what `export_bundle` and `quantize_bundle` do.
    """
    try:
        bundle = export_bundle(
            model.path, scratch, name=name, teacher=model.source, licence=model.licence
        )
        return quantize_bundle(bundle, "int8", out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
