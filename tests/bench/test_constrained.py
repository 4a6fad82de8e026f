"""The bench of forms counts tokens of whole texts, and tells what a form adds."""

from pathlib import Path

from bench import constrained
from kdexport.export.bundles import export_bundle
from tests.models import make_llama


def test_every_form_is_measured_beside_plain_sampling(tmp_path: Path) -> None:
    bundle = export_bundle(make_llama(tmp_path / "model"), tmp_path / "tiny", name="tiny")
    found = constrained.measure(bundle.path, n_texts=2)
    assert found["vocabulary"] == 320 and found["grammars_ms"] > 0
    for name in constrained.FORMS:
        one = found[name]
        assert 0 < one["tokens"] <= 2 * constrained.MOST_TOKENS
        assert abs(one["with_ms"] - one["without_ms"] - one["more_ms"]) < 2e-4  # four digits
