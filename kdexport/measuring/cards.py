"""Model cards of bundles, written into their folders: before a bench, and of what it found."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from kdexport.bundle import CARD, ORIGIN, Bundle, check_files, open_bundle
from kdexport.errors import InputError
from kdexport.system.files import write_whole
from kdexport.verdict.card import Origin, model_card
from kdexport.verdict.report import ArmResult, BenchReport

FACTS = TypeAdapter(dict[str, str])


def write_first_card(bundle: Bundle) -> None:
    """A README.md in a bundle that no bench has measured yet."""
    _write(bundle, None, None)


def write_cards(report: BenchReport, bundles: Mapping[str, Path]) -> None:
    """A README.md in each bundle; ``bundles``: their folders by the names of their arms."""
    for name, path in bundles.items():
        arm = report.arm(name)
        if arm is not None:
            _write(open_bundle(path), report, arm)


def _write(bundle: Bundle, report: BenchReport | None, arm: ArmResult | None) -> None:
    write_whole(bundle.file(CARD), [model_card(_origin(bundle), report, arm)])


def _origin(bundle: Bundle) -> Origin:
    manifest, model, parity = bundle.manifest, bundle.manifest.model, bundle.manifest.parity
    return Origin(
        name=manifest.name,
        scheme=manifest.scheme,
        teacher=manifest.teacher,
        licence=manifest.licence,
        n_parameters=model.n_parameters,
        n_layers=model.n_layers,
        vocab_size=model.vocab_size,
        max_length=model.max_length,
        parity_kl=parity.max_kl if parity else None,
        facts=_facts(bundle),
    )


def _facts(bundle: Bundle) -> dict[str, str]:
    """How a bundle's model came to be, as it was noted when it was exported."""
    if ORIGIN not in bundle.manifest.files:
        return {}
    check_files(bundle, {ORIGIN})
    try:
        return FACTS.validate_json(bundle.file(ORIGIN).read_bytes())
    except ValidationError:
        raise InputError("is no table of facts", where=str(bundle.file(ORIGIN))) from None
