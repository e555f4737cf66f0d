"""Servers that a test starts, and the browser that visits them."""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from house_rules import ROOT
from PIL import Image
from processes import tree

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install -y chromium")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync"]
SCREENSHOTS = Path(__file__).parent / "screenshots"
PATIENCE = 300_000  # milliseconds: a kernel starts and loads both networks, perhaps beside other work


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def server_environment(home: Path) -> dict[str, str]:
    """Of the servers: this Python's kernel, this repository, settings of nobody."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    folders = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "RUNTIME", "DATA")}
    return os.environ | folders | {"PYTHONPATH": path, "JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1"}


class Server:
    """A server on a port of its own; it starts while others do."""

    def __init__(self, module: str, options: list[str], folder: Path, environment: dict[str, str]):
        self.port, self.log = free_port(), folder / f"{module}.txt"
        command = [sys.executable, "-m", module, *(option.format(port=self.port, folder=folder) for option in options)]
        with open(self.log, "w") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    @property
    def address(self) -> str:
        """Where it listens, once it does."""
        for _ in range(1200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return f"http://127.0.0.1:{self.port}/"
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.1)
        raise TimeoutError(self.log.read_text()[-3000:])

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(30)


def leaving(page, address: str) -> list[str]:
    """What a page asks of any other address than the server's, from now on: each is noted, and not let through."""
    asked: list[str] = []
    host = urllib.parse.urlsplit(address).netloc
    own = (f"http://{host}/", f"ws://{host}/", "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(own) or asked.append(request.url))
    page.on("websocket", lambda socket: socket.url.startswith(own) or asked.append(socket.url))
    page.route(lambda url: not url.startswith(own), lambda route: route.abort())
    return asked


PLANTED = """<link rel="stylesheet" href="http://attacker.example/a.css">
<script>fetch("http://attacker.example/b").catch(() => 0); new WebSocket("ws://attacker.example/c")</script></head>"""


def plant(page, address: str) -> None:
    """Makes a page, when it comes, ask another host in three ways, and takes away the policy that forbids it."""
    def answer(route) -> None:
        given = route.fetch(timeout=PATIENCE)
        headers = {name: value for name, value in given.headers.items() if name != "content-security-policy"}
        route.fulfill(response=given, headers=headers, body=given.text().replace("</head>", PLANTED, 1))
    page.route(address, answer)


def kernels(server: Server) -> list[int]:
    """The processes of the kernels that a server has started."""
    found = []
    for each in tree(server.process.pid):
        with suppress(OSError):
            if b"ipykernel_launcher" in Path(f"/proc/{each}/cmdline").read_bytes():
                found.append(each)
    return found


def work_of(server: Server) -> list[str]:
    """Which kernels there are, and the time of the processor that each has had."""
    told = []
    for each in kernels(server):
        with suppress(OSError):
            told.append(f"{each} {Path(f'/proc/{each}/stat').read_text().rpartition(')')[2].split()[11:13]}")
    return told


def wait_for_rest(server: Server, pages: int = 1, patience: float = PATIENCE / 1000) -> None:
    """Returns once a kernel waits for the next visitor, beside the pages', and none of them does anything."""
    before, since = work_of(server), time.monotonic()
    end = time.monotonic() + patience
    while len(before) <= pages or time.monotonic() - since < 3:
        assert time.monotonic() < end, server.log.read_text()[-2000:]
        time.sleep(0.5)
        if (now := work_of(server)) != before:
            before, since = now, time.monotonic()


def answer_to(address: str, **headers: str) -> int:
    """The status that a server answers with."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def check_refusals(address: str, notebook: str) -> None:
    """Asserts that foreign hosts and origins are refused, and sources not served, by a server that answers its own page."""
    asset = f"{address}voila/static/voila-style.js"
    assert answer_to(asset) == 200
    for headers in ({"Host": "attacker.example"}, {"Host": "attacker.example:80"}, {"Origin": "http://attacker.example"}, {"Origin": "null"}):
        assert answer_to(asset, **headers) == 403, headers
        assert answer_to(address, **headers) == 403, headers
    for name in (notebook, f"nbs/{notebook}", f"voila/files/{notebook}", "voila/files/README.md", "files/README.md",
                 "voila/files/..%2fsettings.ini"):
        assert answer_to(f"{address}{name}") in (403, 404), name


class Visit:
    """One person's page; it loads while others do."""

    def __init__(self, browser, address: str):
        self.context = browser.new_context(viewport={"width": 1280, "height": 980})
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.asked = leaving(self.page, address)
        self.page.goto(address, wait_until="commit")
        self.log = self.page.locator(".fromage-log")
        self.status = self.page.locator(".fromage .status")
        self.message = self.page.get_by_label("Message")

    def expect_empty(self) -> None:
        """Waits for an empty dialogue."""
        sync_api.expect(self.log).to_contain_text("Nothing said yet", timeout=PATIENCE)

    def button(self, name: str):
        """A button by its name."""
        return self.page.get_by_role("button", name=name, exact=True)

    def pictures(self, name: str = ".fromage-log"):
        """The picture buttons in a part of the page."""
        return self.page.locator(f"{name} button.fromage-picture")

    def expect_status(self, text: str) -> None:
        """Waits until the line under the messages says so."""
        sync_api.expect(self.status).to_contain_text(text, timeout=PATIENCE)

    def say(self, text: str, enter: bool = True) -> None:
        """Types a message and sends it; waits for the reply."""
        self.message.fill(text)
        self.message.press("Enter") if enter else self.button("Send").click()
        sync_api.expect(self.message).to_have_value("", timeout=PATIENCE)
        self.expect_status("Done")

    def upload(self, name: str, data: bytes) -> None:
        """Chooses a file."""
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Upload image").click()
        chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": data})

    def keep(self, name: str) -> None:
        """A screenshot for whoever looks at the run, in 256 colours."""
        SCREENSHOTS.mkdir(exist_ok=True)
        seen = Image.open(io.BytesIO(self.page.screenshot(full_page=True))).convert("RGB")
        seen.quantize(256).save(SCREENSHOTS / f"{name}.png", optimize=True)
