"""Model cards of bundles that a bench has measured, written into their folders."""

from collections.abc import Mapping
from pathlib import Path

from kdexport.bundle import CARD, Bundle, open_bundle
from kdexport.system.files import write_whole
from kdexport.verdict.card import Origin, model_card
from kdexport.verdict.report import BenchReport


def write_cards(report: BenchReport, bundles: Mapping[str, Path]) -> None:
    """A README.md in each bundle; ``bundles``: their folders by the names of their arms."""
    for name, path in bundles.items():
        arm = report.arm(name)
        if arm is not None:
            write_whole(path / CARD, [model_card(report, arm, _origin(open_bundle(path)))])


def _origin(bundle: Bundle) -> Origin:
    manifest, model = bundle.manifest, bundle.manifest.model
    return Origin(
        name=manifest.name,
        scheme=manifest.scheme,
        teacher=manifest.teacher,
        licence=manifest.licence,
        n_parameters=model.n_parameters,
        n_layers=model.n_layers,
        vocab_size=model.vocab_size,
        max_length=model.max_length,
    )
