"""People rate stories in a real browser: whole sessions, two at once, one cut off by a kill, one on a phone; nothing is lost. Their owner watches."""

import json
import os
import signal
from pathlib import Path

import pytest
from browsing import NEEDS_CHROMIUM, PATIENCE, SCREENSHOTS, Server, check_refusals, leaving, sync_api
from fromage.study.answers import read_label_studio, read_ratings
from fromage.study.blinding import ensure_practice
from fromage.study.folder import Study, key_path, open_key
from fromage.study.session import ratings_path
from fromage.study.specification import Completion

pytestmark = NEEDS_CHROMIUM


class Rater:
    """One person at a page of their own; `given` holds every answer as (screen, criterion, option)."""

    def __init__(self, browser, address: str, study: Study, code: str, **options):
        self.study, self.code, self.given = study, code, []
        self.context = browser.new_context(**({"viewport": {"width": 1100, "height": 900}} | options))
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.asked = leaving(self.page, address)
        self.address = address
        self.visit()

    def visit(self) -> None:
        """Opens the page, also after it broke."""
        self.page.goto(self.address, timeout=PATIENCE)
        self.page.get_by_label("Your code").wait_for(timeout=PATIENCE)

    def enter(self, code: str) -> None:
        """Types a code."""
        self.page.get_by_label("Your code").fill(code)
        self.page.get_by_role("button", name="Begin").click()

    def press(self, name: str) -> None:
        """A button by its name."""
        self.page.get_by_role("button", name=name, exact=True).click()

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
        anna.press("I agree")
        anna.expect(f"You will see {len(study.plan[first])} stories")
        anna.press("Start")
        anna.expect_screen(0)
        ben.enter(first)
        ben.expect("open in another window")
        ben.enter(second)
        ben.press("I agree")
        ben.press("Start")
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


# what sticks out of the window, and what scrolls sideways
WIDE = """() => [...document.querySelectorAll('body *')].filter(one => one.checkVisibility() &&
  (one.getBoundingClientRect().right > 391 || one.getBoundingClientRect().left < -1 ||
   ['auto', 'scroll'].includes(getComputedStyle(one).overflowX) && one.scrollWidth > one.clientWidth + 1)).map(one => one.outerHTML.slice(0, 160))"""
# buttons of the page that a thumb misses
SMALL = """() => [...document.querySelectorAll('.rating button')].map(one => [one.innerText, one.getBoundingClientRect()])
  .filter(([_, box]) => box.width && (box.height < 44 || box.width < 44)).map(([name, box]) => [name, box.width, box.height])"""
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "permissions": ["clipboard-read", "clipboard-write"]}


def fits(page, name: str) -> None:
    """Asserts that a screen needs no scrolling sideways on a phone and is made for thumbs; keeps a picture."""
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"rating-{name}.png", full_page=True)
    assert page.evaluate("[innerWidth, document.scrollingElement.scrollWidth]") == [390, 390], name
    assert (page.evaluate(WIDE), page.evaluate(SMALL)) == ([], []), name


def owner_sees(browser, address: str, study: Study, code: str, folder: Path) -> None:
    """The owner's page: progress, agreement, a code looked up, and files that are analysed as the answers are."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    asked = leaving(page, address)
    page.set_default_timeout(60_000)
    page.goto(address, timeout=PATIENCE)
    whole = page.locator(".owner")
    sync_api.expect(whole).to_contain_text(f"{len(study.plan[code])} of {sum(map(len, study.plan.values()))} screens are answered", timeout=PATIENCE)
    row = page.locator("tr", has_text=code)
    sync_api.expect(row).to_contain_text("finished")
    sync_api.expect(row).to_contain_text(study.completion[code])
    for text in (*study.specification.systems, *(study.completion[other] for other in study.plan if other != code)):
        assert text not in whole.inner_text()
    page.locator("textarea").fill(f"{study.completion[code]} NOTHING")
    page.get_by_role("button", name="Check codes").click()
    sync_api.expect(whole).to_contain_text("no code of this study")
    page.get_by_role("button", name="Export").click()
    for name in ("ratings.csv", "ratings.jsonl", "label_studio.json", "label_studio.xml"):
        with page.expect_download() as download:
            page.get_by_text(name, exact=True).click()
        download.value.save_as(folder / name)
    page.screenshot(path=SCREENSHOTS / "owner.png", full_page=True)
    assert asked == []
    check_refusals(address, "watch_study.ipynb")


def test_on_a_phone_and_watched(browser, environment: dict[str, str], tmp_path: Path) -> None:
    """Every screen fits 390 pixels; a pause is left by the rater's own address; the last screen has the code; the owner sees it."""
    study = ensure_practice(tmp_path / "study", items=4, raters=3, completion=Completion("each", link="https://panel.example/done?cc={code}"))
    key_path(study.folder).rename(tmp_path / "key.json")
    options = ["--port", "{port}", "--study", str(study.folder)]
    servers = [Server(f"fromage.study.{name}", options, tmp_path, environment) for name in ("page", "owner")]
    code, count = next(iter(study.plan)), len(next(iter(study.plan.values())))
    try:
        address = servers[0].address
        rater = Rater(browser, address, study, code, **PHONE)
        page = rater.page
        fits(page, "code")
        rater.enter(code)
        rater.expect("research")
        fits(page, "consent")
        rater.press("I agree")
        rater.expect("What to do")
        fits(page, "instructions")
        rater.press("Start")
        rater.expect_screen(0)
        top = "document.querySelector('.rating h1').getBoundingClientRect().top"
        rater.choice(1, 3).scroll_into_view_if_needed()
        before = page.evaluate(top)
        rater.answer(0, (1, 2), keys=False)
        rater.expect("in disorder")
        assert page.evaluate(top) == before < 0  # what is tapped stays under the thumb
        fits(page, "practice")
        rater.press("Next →")
        rater.expect_screen(1)
        page.wait_for_function(f"{top} >= 0")
        fits(page, "story")
        rater.answer(1, (1,), keys=False)
        rater.press("Pause")
        rater.expect("Paused")
        link = page.locator(".rating a.rating-own")
        sync_api.expect(link).to_have_text(f"{address}?code={code}")
        rater.press("Copy")
        rater.expect("Copied.")
        assert page.evaluate("navigator.clipboard.readText()") == f"{address}?code={code}"
        fits(page, "pause")
        page.goto(link.inner_text(), timeout=PATIENCE)
        rater.expect_screen(1)
        sync_api.expect(rater.choice(0, 1)).to_contain_text("✓")
        rater.press("Instructions")
        rater.expect("What to do")
        rater.press("Go on")
        rater.rest(1, keys=False)
        rater.expect(study.completion[code])
        fits(page, "last")
        assert page.get_by_role("link", name="Back to the panel").get_attribute("href") == f"https://panel.example/done?cc={study.completion[code]}"
        assert rater.asked == []
        owner_sees(browser, servers[1].address, study, code, tmp_path)
    finally:
        for server in servers:
            server.stop()
    key = open_key(study, tmp_path / "key.json")
    table, problems = read_ratings(study, key)
    labelled, _ = read_label_studio(study, key, tmp_path / "label_studio.json")
    kept = ["rater", "item", "kind", "criterion", "chosen", "right"]
    final = [each[each["final"]][kept].sort_values(kept[:4]).to_csv(index=False) for each in (table, labelled)]
    assert problems == {} and final[0] == final[1] and len(table[table["final"]]) == 2 * count
    lines = [json.loads(line) for line in (tmp_path / "ratings.jsonl").read_text().splitlines()]
    assert len(lines) == len(table) and not set(lines[0]) & {"systems", "chosen", "story", "kind", "right"}
