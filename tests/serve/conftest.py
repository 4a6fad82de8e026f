from pathlib import Path

import pytest

from kdexport.bundle import Bundle
from tests.models import make_llama


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny fp32 model with a chat template; it reads 256 tokens."""
    from kdexport.export.bundles import export_bundle

    folder: Path = tmp_path_factory.mktemp("served")
    return export_bundle(make_llama(folder / "model"), folder / "bundle", name="tiny")
