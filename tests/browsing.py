"""Servers that a test starts, and the browser that visits them."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from house_rules import ROOT

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install -y chromium")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync"]
SCREENSHOTS = Path(__file__).parent / "screenshots"
PATIENCE = 120_000  # milliseconds: a kernel starts and loads both networks, perhaps beside other tests


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_open(port: int, process: subprocess.Popen, log: Path) -> None:
    """Returns when the server listens."""
    for _ in range(1200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.1)
    raise TimeoutError(log.read_text()[-3000:])


def server_environment(home: Path) -> dict[str, str]:
    """Of the servers: this Python's kernel, this repository, settings of nobody."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    folders = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "RUNTIME", "DATA")}
    return os.environ | folders | {"PYTHONPATH": path, "JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1"}


def serve(command: list[str], port: int, log: Path, environment: dict[str, str], folder: Path = ROOT):
    """Runs a server until the generator is closed; yields its address."""
    with open(log, "w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        wait_until_open(port, process, log)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)
