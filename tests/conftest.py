"""What several test files share."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two processes on few cores


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may need a model hub; processes started by a test inherit this."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of servers that a test starts."""
    from browsing import server_environment  # a file of tests that needs no browser must not be skipped without one
    return server_environment(tmp_path_factory.mktemp("jupyter"))


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium."""
    from browsing import CHROMIUM, OPTIONS, sync_api
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS, headless=True)
        yield opened
        opened.close()
