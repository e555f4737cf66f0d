"""What a server of pages promises: places for so many, kernels that end, a page that is back at once, and nobody else asked."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import browsing
import pytest
from browsing import PATIENCE, Server, kernels, leaving, plant, sync_api, wait_for_rest
from fromage.study.blinding import ensure_practice
from fromage.study.folder import Study

pytestmark = browsing.NEEDS_CHROMIUM
ONE_PLACE = """
import fromage.core.serving
fromage.core.serving.MOST_SESSIONS = 1
from fromage.study.page import serve_study
serve_study()
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A small study."""
    return ensure_practice(tmp_path_factory.mktemp("rated") / "study", items=4, raters=3)


@pytest.fixture(scope="module")
def server(study: Study, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The rating page."""
    options = ["--port", "{port}", "--study", str(study.folder)]
    started = Server("fromage.study.page", options, tmp_path_factory.mktemp("server"), environment)
    yield started
    started.stop()


def come_back(page, code: str) -> float:
    """Loads the page again and enters the code; seconds until the rater is where they were: before the first answer, at the instructions."""
    begun = time.monotonic()
    page.reload(wait_until="commit")
    page.get_by_label("Your code").fill(code, timeout=PATIENCE)
    there, begin = page.get_by_text("What to do"), page.get_by_role("button", name="Begin")
    while not there.is_visible():  # the page before may still be closing the session
        assert time.monotonic() - begun < PATIENCE / 1000, page.locator(".rating").inner_text()
        with suppress(sync_api.TimeoutError):
            begin.click(timeout=500)
            there.wait_for(timeout=500)
    return time.monotonic() - begun


def ticks(process: int) -> int:
    """Of the processor, that a process has had."""
    return sum(map(int, Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]))


def test_a_rater_who_reloads_is_served_by_the_kernel_that_waits(browser, server: Server, study: Study) -> None:
    """Under five seconds on a machine that is not busy (it is printed); on any, no kernel is started first."""
    code = next(iter(study.plan))
    wait_for_rest(server, pages=0)  # a visitor who comes before any kernel waits is given one of their own
    page = browser.new_page()
    page.goto(server.address, wait_until="commit", timeout=PATIENCE)
    page.get_by_label("Your code").fill(code, timeout=PATIENCE)
    page.get_by_role("button", name="Begin").click()
    page.get_by_role("button", name="I agree").click(timeout=PATIENCE)
    page.get_by_text("What to do").wait_for(timeout=PATIENCE)
    for _ in range(3):
        wait_for_rest(server)
        of_page, waiting = sorted(kernels(server))  # the younger waits
        before = ticks(waiting)
        print(f"back after {come_back(page, code):.1f} s")
        assert ticks(waiting) > before and waiting in kernels(server), (of_page, waiting)
    page.close()


def test_a_planted_request_is_seen(browser, server: Server) -> None:
    """In the page's markup, by a style sheet, a script and a socket: what the other tests look for would be found."""
    page = browser.new_page()
    asked = leaving(page, server.address)
    plant(page, server.address)
    page.goto(server.address, wait_until="commit", timeout=PATIENCE)
    planted = {"http://attacker.example/a.css", "http://attacker.example/b", "ws://attacker.example/c"}
    end = time.monotonic() + 30
    while not planted <= set(asked) and time.monotonic() < end:
        page.wait_for_timeout(100)
    page.close()
    assert planted <= set(asked)


def test_the_next_visitor_is_told_and_comes_in_when_a_page_was_closed(
        browser, study: Study, environment: dict[str, str], tmp_path: Path) -> None:
    """The kernel of a page whose browser is gone without a word ends within a minute."""
    (tmp_path / "one_place.py").write_text(ONE_PLACE)
    paths = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    one = Server("one_place", ["--port", "{port}", "--study", str(study.folder)], tmp_path, environment | {"PYTHONPATH": paths})
    try:
        first, second = browser.new_context(), browser.new_context()
        inside, waiting = first.new_page(), second.new_page()
        inside.goto(one.address, wait_until="commit", timeout=PATIENCE)
        inside.get_by_label("Your code").wait_for(timeout=PATIENCE)
        wait_for_rest(one)
        assert len(kernels(one)) == 2  # the page's, and the one that is ready for the next visitor
        answer = waiting.goto(one.address)
        assert answer.status == 503 and answer.headers["retry-after"]
        sync_api.expect(waiting.get_by_role("status")).to_contain_text("All 1 places are taken")
        inside.evaluate("window.navigator.sendBeacon = () => true")  # as if the machine of the visitor had lost its power
        before, begun = {*kernels(one)}, time.monotonic()
        first.close()
        while before <= {*kernels(one)}:
            assert time.monotonic() - begun < 60, "the kernel of a closed page lives"
            time.sleep(0.5)
        print(f"its kernel ended after {time.monotonic() - begun:.0f} s")
        waiting.get_by_label("Your code").wait_for(timeout=PATIENCE)
        second.close()
    finally:
        one.stop()
