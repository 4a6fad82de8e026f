from pathlib import Path

import pytest

from kdexport.bundle import Bundle
from tests.models import make_gpt2, make_llama


@pytest.fixture(scope="session")
def llama_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from kdexport.export.bundles import export_bundle

    folder = tmp_path_factory.mktemp("llama")
    return export_bundle(make_llama(folder / "model"), folder / "bundle", name="llama")


@pytest.fixture(scope="session")
def gpt2_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from kdexport.export.bundles import export_bundle

    folder = tmp_path_factory.mktemp("gpt2")
    return export_bundle(make_gpt2(folder / "model"), folder / "bundle", name="gpt2")


@pytest.fixture(scope="session")
def int8_bundle(llama_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from kdexport.export.quantize import quantize_bundle

    out: Path = tmp_path_factory.mktemp("int8") / "bundle"
    return quantize_bundle(llama_bundle, "int8-portable", out)


@pytest.fixture(scope="session")
def kv8_bundle(llama_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Quantized as `int8_bundle` is, and its keys and values too."""
    from kdexport.export.quantize import Wishes, quantize_bundle

    out: Path = tmp_path_factory.mktemp("kv8") / "bundle"
    return quantize_bundle(llama_bundle, "int8-portable", out, Wishes(kv_cache="int8"))
