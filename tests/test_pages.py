"""Reports as pages: what the index says comes from the records, and both are readable on a phone and on paper."""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import browsing
import nbformat
import pytest
from browsing import SCREENSHOTS, Server, leaving
from house_rules import ROOT

from fromage.core.answers import answer_in_words
from fromage.core.metrics import Estimate
from fromage.core.notes import DATA, note_finding
from fromage.core.pages import export_html, write_index
from fromage.core.paper import PAPER_CLAIMS
from fromage.core.presets import EMOJI
from fromage.core.questions import answers_of, claim_words
from fromage.core.records import start_record
from fromage.core.reporting import metric_values, read_reports

REPORTS = read_reports(ROOT / "reports")[0]


def written(record) -> set[str]:
    """Every number of a record as a sentence may write it: rounded, as a share of a hundred, as a difference."""
    values = [value.value if isinstance(value, Estimate) else value for _, value in metric_values(record.metrics)]
    values = [value for value in values if value is not None]
    forms = [format(scale * value, form) for value in values for scale in (1, 100) for form in (".0f", ".1f", ".3f", "+.0f")]
    counts = Counter(row.get("here") for row in record.metrics.get("claims", {}).values())  # of claims by their answer
    answered = sum(record.metrics["answers"].values()) if record.run == "claims" else 0
    return {*forms, *(f"{value:,}" for value in values), *map(str, (*counts.values(), counts.total(), answered))}


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.name)
def test_an_answer_is_words_whose_numbers_stand_in_the_record(report) -> None:
    answer = answer_in_words(report.record)
    assert len(answer) > 40 and answer.endswith(".")
    told = answer.replace("5 images + 4 captions", "")  # the name of a condition
    numbers = re.findall(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?", told)
    assert numbers and set(numbers) <= written(report.record)


def test_a_training_on_pictures_whose_truth_nobody_knows_has_a_card_and_a_page(tmp_path: Path) -> None:
    """As the preset of emoji leaves it: no claims, no control in words; the numbers of its answer stand in what remains."""
    known = next(report.record for report in REPORTS if report.name == "train-mini")
    controls = {kind: {name: row for name, row in rows.items() if "the truth" not in name} if "differences" not in kind else
                {metric: {pair: row for pair, row in pairs.items() if "the truth" not in pair} for metric, pairs in rows.items()}
                for kind, rows in known.metrics["controls"].items()}
    record = start_record("train", EMOJI, 0).finish({**known.metrics, "grounded": {}, "controls": controls})
    assert "the truth" not in note_finding(record) and record.limits.startswith(DATA) and len(record.finding) > 40
    record.save(tmp_path / "train-emoji.json")
    shutil.copy(ROOT / "nbs" / "train.ipynb", tmp_path / "train-emoji.ipynb")
    answer = answer_in_words(record)
    assert answer.startswith("Beyond chance: ") and set(re.findall(r"[-+]?\d+(?:\.\d+)?", answer)) <= written(record)
    assert answers_of("train-emoji", record) == [] and "all settings as usual" in write_index(tmp_path).read_text(encoding="utf-8")
    for page in (tmp_path / "index.html", export_html(tmp_path / "train-emoji.ipynb")):
        assert answer in unescape(page.read_text(encoding="utf-8")).replace("\N{NO-BREAK SPACE}", " "), page.name


def test_whoever_reads_the_index_alone_knows_what_became_of_every_claim(tmp_path: Path) -> None:
    """Each claim of the paper stands in the card of its report, in words, with what the record says of it."""
    for report in REPORTS:
        shutil.copy(ROOT / "reports" / f"{report.name}.json", tmp_path)
    page = write_index(tmp_path).read_text(encoding="utf-8")
    cards = dict(re.findall(r'<article class="card" id="([^"]+)">(.*?)</article>', page, re.DOTALL))
    assert list(cards) != sorted(cards) and set(cards) == {report.name for report in REPORTS}
    told = [(report.name, answer) for report in REPORTS for answer in answers_of(report.name, report.record)]
    for name, answer in told:
        words = claim_words(answer).replace("'", "&#x27;")
        assert f"{words} <span>({answer.answer})</span>" in cards[name]
    assert {answer.claim.text for name, answer in told if name == answer.claim.report} == {claim.text for claim in PAPER_CLAIMS}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Server]:
    """The index and two pages: the training's, with all that is wide, and the one of all claims."""
    folder = tmp_path_factory.mktemp("reports")
    for report in REPORTS:
        for path in (ROOT / "reports").glob(f"{report.name}.[jp][sn]*"):
            shutil.copy(path, folder)
    for run, name in (("train", "train-mini"), ("claims", "claims")):
        notebook = nbformat.read(ROOT / "nbs" / f"{run}.ipynb", as_version=4)
        wide = "<table class='dataframe'><tr>" + "<td>a wide cell of a table</td>" * 20 + "</tr></table>"
        outputs = [nbformat.v4.new_output("display_data", data={"text/html": wide}),
                   nbformat.v4.new_output("stream", text="a line that does not end " * 20),
                   nbformat.v4.new_output("display_data", data={"text/html": f"<p>$W_c$ {'unbroken' * 40}</p>"})]
        notebook.cells.append(nbformat.v4.new_code_cell("1 + 1", outputs=outputs))
        nbformat.write(notebook, folder / f"{name}.ipynb")
        export_html(folder / f"{name}.ipynb")
    write_index(folder)
    server = Server("http.server", ["{port}", "--bind", "127.0.0.1", "--directory", "{folder}"], folder, environment)
    yield server
    server.stop()


@pytest.mark.parametrize("name", ["index", "train-mini", "claims"])
@browsing.NEEDS_CHROMIUM
def test_a_page_fits_a_phone_and_paper_and_asks_nobody(browser, pages: Server, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page = browser.new_page(viewport={"width": 390, "height": 844})
    asked = leaving(page, pages.address)
    page.goto(f"{pages.address}{name}.html")
    widths = "[document.documentElement.scrollWidth, window.innerWidth]"
    assert page.evaluate(widths) == [390, 390]
    page.screenshot(path=SCREENSHOTS / f"report-{name}-phone.png", full_page=True)
    folds = page.locator("details")
    assert page.locator("h1").inner_text().endswith("?") or name == "index"
    assert name == "index" or folds.count() > 5 and not page.locator(".code .highlight").first.is_visible()
    folds.evaluate_all("all => all.forEach(fold => { fold.open = true })")  # code that is unfolded scrolls within itself
    assert page.evaluate(widths) == [390, 390]
    folds.evaluate_all("all => all.forEach(fold => { fold.open = false })")
    page.set_viewport_size({"width": 720, "height": 1020})  # A4 without its margins
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") == 720
    assert page.locator("summary:visible").count() == 0
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    page.screenshot(path=SCREENSHOTS / f"report-{name}-paper.png", full_page=True)
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)")
    assert asked == []
    page.close()


@browsing.NEEDS_CHROMIUM
def test_a_page_that_is_too_wide_is_seen(browser, pages: Server) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(f"{pages.address}index.html")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<div style=\"width: 500px\">wide</div>')")
    assert page.evaluate("document.documentElement.scrollWidth") > 390
    page.close()
