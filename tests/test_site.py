"""The documentation site: built strictly, every link followed, read in a browser; the commands of its pages exist."""

import functools
import http.server
import json
import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import NEEDS_CHROMIUM, SCREENSHOTS
from fromage.chat.command import make_parser, read_declared
from fromage.core.site import HOW_TO, broken_links, build_site
from house_rules import ROOMS, ROOT, library, read_notebooks, runs

PAGES = {path: (ROOT / path).read_text(encoding="utf-8")
         for path in ("README.md", "data/README.md", "CONTRIBUTING.md", *(f"nbs/pages/{name}.md" for name in HOW_TO))}
# What is no command of ours: the shell's and Python's own, and what fetches data.
OTHERS = {"pip", "python3", "jupyter", "sed", "for", "img2dataset", "done", "mkdir", "python", "source"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    return build_site(ROOT, tmp_path_factory.mktemp("docs")).parent


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_every_notebook_and_module_has_its_place(site: Path) -> None:
    notebooks = read_notebooks()
    assert [each.name for each in notebooks if not (site / f"nbs/{each.name}.html").is_file()] == []
    for room in ROOMS:
        text = (site / f"reference/{room}.html").read_text(encoding="utf-8")
        modules = [each.module for each in library(notebooks) if each.room == room]
        assert modules and [name for name in modules if f'id="fromage.{name}' not in text] == []
    found = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))["docs"]
    assert {f"nbs/{each.name}.html" for each in runs(notebooks)} <= {each["location"] for each in found}


def test_a_page_is_readable(site: Path) -> None:
    """Formulas are drawn, code has its colours, directives are gone; the reports' questions are answered."""
    losses = (site / "nbs/model/02_losses.html").read_text(encoding="utf-8")
    assert 'class="formula"' in losses and 'class="kn"' in losses and "#| export" not in losses and "default_exp" not in losses
    told = (site / "reports/index.html").read_text(encoding="utf-8")
    assert told.count("<strong>") >= len(list((ROOT / "reports").glob("*.json")))


def test_a_link_that_leads_nowhere_is_found(site: Path) -> None:
    page = site / "wrong.html"
    page.write_text('<a href="nbs/train.html#nothing">a</a><a href="gone.html">b</a><script src="https://host/x.js"></script>')
    try:
        assert len(list(broken_links(site))) == 3
    finally:
        page.unlink()


@NEEDS_CHROMIUM
@pytest.mark.parametrize("page", ["index", "nbs/tutorial", "nbs/pages/hub", "reports/index", "reference/model", "data/index"])
def test_a_page_asks_no_other_host_and_fits_a_phone(page: str, address: str, browser) -> None:
    opened, asked, said = browser.new_page(viewport={"width": 390, "height": 844}), [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(f"{address}{page}.html", wait_until="networkidle")
    SCREENSHOTS.mkdir(exist_ok=True)
    opened.screenshot(path=SCREENSHOTS / f"site-{page.replace('/', '-')}.png")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    opened.close()
    assert len(asked) > 2 and [url for url in asked if not url.startswith((address, "data:"))] == [] and said == []


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_exist(name: str) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGES[name], re.S | re.M)
    shell = "\n".join(text for kind, text in blocks if not kind).replace("\\\n", " ")
    for line in filter(None, shell.splitlines()):
        words = shlex.split(line.replace("</dev/null", ""), comments=True)
        if words[0] == "fromage":
            make_parser().parse_args(words[1:])
        elif words[0] in OTHERS or line.startswith(("fromage/ ", "data/", "reports/ ", "tests/ ")):  # the last: a list of folders
            continue
        elif words[0] == "papermill":
            assert (ROOT / words[1]).is_file(), line
            given = set(re.findall(r"(?:-p |-y '\{)(\w+)", line))
            assert given and given <= {each[0] for each in read_declared(Path(words[1]).stem)}, line
        else:
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert words[0] == "make" and re.search(rf"^{words[1]}:", makefile, re.M), line
