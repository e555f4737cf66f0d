"""People rate stories in a real browser: whole sessions, two at once, one cut off by a kill; nothing is lost."""

import os
import signal
from pathlib import Path

import pytest
from browsing import NEEDS_CHROMIUM, PATIENCE, SCREENSHOTS, Server, check_refusals, leaving, sync_api
from fromage.study.answers import read_ratings
from fromage.study.blinding import ensure_practice
from fromage.study.folder import Study, key_path, open_key
from fromage.study.session import ratings_path

pytestmark = NEEDS_CHROMIUM


class Rater:
    """One person at a page of their own; `given` holds every answer as (screen, criterion, option)."""

    def __init__(self, browser, address: str, study: Study, code: str):
        self.study, self.code, self.given = study, code, []
        self.context = browser.new_context(viewport={"width": 1100, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.asked = leaving(self.page, address)
        self.address = address
        self.visit()

    def visit(self) -> None:
        """Opens the page, also after it broke."""
        self.page.goto(self.address)
        self.page.get_by_label("Your code").wait_for(timeout=PATIENCE)

    def enter(self, code: str) -> None:
        """Types a code."""
        self.page.get_by_label("Your code").fill(code)
        self.page.get_by_role("button", name="Begin").click()

    def expect(self, text: str) -> None:
        """Waits for words on the page."""
        sync_api.expect(self.page.locator(".rating")).to_contain_text(text, timeout=PATIENCE)

    def expect_screen(self, place: int) -> None:
        """Waits for a screen by its number from 0."""
        self.expect(f"Story {place + 1} of {len(self.study.plan[self.code])}")

    def choice(self, question: int, digit: int):
        """The button of an ending."""
        return self.page.locator(".rating-question").nth(question).locator(f".choice-{digit}")

    def answer(self, place: int, digits: tuple[int, ...], keys: bool) -> None:
        """Answers the questions of a screen, by keyboard or mouse, and waits until each is marked."""
        if keys:
            self.page.locator(".rating h1").click()
        for question, digit in enumerate(digits):
            self.page.keyboard.press(str(digit)) if keys else self.choice(question, digit).click()
            self.given.append((place, self.study.specification.criteria[question].name, self.study.plan[self.code][place].options[digit - 1]))
        for question, digit in enumerate(digits):
            sync_api.expect(self.choice(question, digit)).to_contain_text("✓")

    def rest(self, place: int, keys: bool) -> None:
        """All screens from this one to the end."""
        for number in range(place, len(self.study.plan[self.code])):
            self.expect_screen(number)
            self.answer(number, (1 + number % 3, 1 + (number + 1) % 3), keys)
            self.page.keyboard.press("ArrowRight") if keys else self.page.get_by_role("button", name="Next").click()
        self.expect("That was all")


def holder_of(path: Path) -> int:
    """The process that has a file open."""
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if Path(os.readlink(entry)) == path:
                return int(entry.parts[2])
        except OSError:
            continue
    raise LookupError(f"nobody has {path} open")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A small study without its key: rating must not need it."""
    made = ensure_practice(tmp_path / "study", items=4, raters=3)
    key_path(made.folder).rename(tmp_path / "key.json")
    return made


def test_sessions(browser, environment: dict[str, str], study: Study, tmp_path: Path) -> None:
    server = Server("fromage.study.page", ["--port", "{port}", "--study", str(study.folder)], tmp_path, environment)
    try:
        address = server.address
        first, second, *_ = study.plan
        anna, ben = Rater(browser, address, study, first), Rater(browser, address, study, second)
        anna.enter("XYZ-000")
        anna.expect("XYZ-000 is no code of this study")
        anna.enter(first)
        anna.page.get_by_role("button", name="I agree").click()
        anna.expect_screen(0)
        ben.enter(first)
        ben.expect("open in another window")
        ben.enter(second)
        ben.page.get_by_role("button", name="I agree").click()
        ben.expect_screen(0)
        anna.answer(0, (1, 2), keys=True)
        anna.expect("in disorder")  # the feedback of a training item
        SCREENSHOTS.mkdir(exist_ok=True)
        anna.page.screenshot(path=SCREENSHOTS / "rating.png", full_page=True)
        anna.page.keyboard.press("ArrowRight")
        anna.expect_screen(1)
        anna.answer(1, (3,), keys=True)
        os.kill(holder_of(ratings_path(study, first)), signal.SIGKILL)  # in the middle of a screen
        ben.rest(0, keys=False)
        anna.visit()
        anna.enter(first.lower())
        anna.expect_screen(1)
        sync_api.expect(anna.choice(0, 3)).to_contain_text("✓")
        anna.answer(1, (3, 1), keys=False)
        anna.given.remove(anna.given[-2])  # the answer that was there already: clicked again, nothing changes
        anna.page.get_by_role("button", name="Back").click()
        anna.expect_screen(0)
        anna.choice(1, 3).click()
        anna.given.append((0, "relevant", study.plan[first][0].options[2]))
        sync_api.expect(anna.choice(1, 3)).to_contain_text("✓")
        anna.page.keyboard.press("ArrowRight")
        anna.expect_screen(1)
        anna.page.keyboard.press("ArrowRight")
        anna.rest(2, keys=True)
        assert anna.asked + ben.asked == []
        check_refusals(address, "rate_stories.ipynb")
    finally:
        server.stop()
    check_answers(study, tmp_path, {first: anna, second: ben})


def check_answers(study: Study, folder: Path, raters: dict[str, Rater]) -> None:
    """Everything that was clicked is on the disk, in order, once; the changed answer is a revision."""
    table, problems = read_ratings(study, open_key(study, folder / "key.json"))
    assert problems == {}
    for code, rater in raters.items():
        own = table[table["rater"] == code]
        assert list(own[["order", "criterion", "value"]].itertuples(index=False, name=None)) == rater.given
    changed = table[table["revision"] > 0]
    assert changed[["rater", "order", "criterion"]].values.tolist() == [[next(iter(raters)), 0, "relevant"]]
