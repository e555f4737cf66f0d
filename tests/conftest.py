"""What several test files share."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two processes on few cores


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may need a model hub; processes started by a test inherit this."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
