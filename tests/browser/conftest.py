"""Collected where it is named (make test-browser): it needs Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdexport.bundle import Bundle

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    named = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return None if any(HERE in (path, *path.parents) for path in named) else True


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny model with a chat template; it reads 2,048 tokens, hardly more than bytes."""
    from kdexport.export.bundles import export_bundle
    from tests.models import make_family

    folder = tmp_path_factory.mktemp("browsed")
    model = make_family(folder / "model", "smollm2", max_position_embeddings=2048)
    return export_bundle(model, folder / "bundle", name="tiny")


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """Debian's Chromium, or another that is installed; each session has a profile of its own."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, NAMES)), None)
    assert program, "Chromium is missing: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=program,
            headless=False,  # --headless=new is among the arguments
            args=list(QUIET),
        )
        yield started
        started.close()
