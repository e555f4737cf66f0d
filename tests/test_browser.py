"""The demo in a real browser: Voilà's page as `make demo` serves it, and the same notebook in JupyterLab."""

import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import browsing
import nbformat
import pytest
from browsing import PATIENCE, Server, Visit, check_refusals, sync_api
from house_rules import ROOT
from PIL import Image

from fromage.mini.world import scene_from_truth

pytestmark = browsing.NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def servers(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory):
    """The demo, and JupyterLab with a copy of its notebook; both start at once."""
    folder = tmp_path_factory.mktemp("notebooks")
    copy_of_chat(folder / "chat.ipynb")
    lab = ["--no-browser", "--port={port}", "--ServerApp.port_retries=0", "--allow-root", "--IdentityProvider.token=",
           "--ServerApp.root_dir={folder}"]
    started = {"demo": Server("fromage.chat.command", ["demo", "--port", "{port}"], folder, environment),
               "lab": Server("jupyterlab", lab, folder, environment)}
    yield started
    for server in started.values():
        server.stop()


def copy_of_chat(path: Path) -> None:
    """The notebook with one more cell: a page that has no index of images."""
    notebook = nbformat.read(ROOT / "nbs" / "chat.ipynb", nbformat.NO_CONVERT)
    notebook.cells.append(nbformat.v4.new_code_cell("open_page(Conversation(assistant)).view"))
    nbformat.write(notebook, path)


@pytest.fixture(scope="module")
def runs():
    """Two checkpoints that runs left: the shipped one's copy, and a file that is none."""
    (ROOT / "data" / "runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="good-", dir=ROOT / "data" / "runs") as good, \
            tempfile.TemporaryDirectory(prefix="broken-", dir=ROOT / "data" / "runs") as broken:
        shutil.copy(ROOT / "data/mini/checkpoint.safetensors", good)
        Path(broken, "best.safetensors").write_text("no checkpoint")
        yield {"good": f"data/runs/{Path(good).name}/checkpoint.safetensors", "broken": f"data/runs/{Path(broken).name}/best.safetensors"}


@pytest.fixture(scope="module")
def visits(browser, servers: dict[str, Server], runs: dict[str, str]):
    """The pages of two people."""
    pair = [Visit(browser, servers["demo"].address) for _ in range(2)]
    for one in pair:
        one.expect_empty()
    pair[0].keep("start")
    yield pair
    for one in pair:
        one.context.close()


@pytest.fixture
def visit(visits: list[Visit]) -> Visit:
    """The first one's page with an empty dialogue."""
    first = visits[0]
    if first.button("New dialogue").is_enabled():
        try:
            first.button("New dialogue").click(timeout=5000)
        except sync_api.TimeoutError:  # undo emptied the dialogue, and its button went off just now
            sync_api.expect(first.button("New dialogue")).to_be_disabled()
    first.expect_empty()
    first.message.fill("")
    return first


def picture_file(width: int, height: int, mode: str = "RGB") -> bytes:
    """A grey PNG."""
    buffer = io.BytesIO()
    Image.new(mode, (width, height), 127).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("enter", [True, False])
def test_a_turn_of_text(visit: Visit, enter: bool) -> None:
    visit.say("is there a <b id='injected'>ball</b>?", enter)
    sync_api.expect(visit.log.locator(".question")).to_have_text("is there a <b id='injected'>ball</b>?")
    assert visit.page.locator("#injected").count() == 0
    assert visit.log.locator(".answer").inner_text().strip() not in ("", "…")
    sync_api.expect(visit.page.get_by_role("img", name="P([RET])")).to_be_visible()
    visit.page.get_by_role("button", name="The exact prompt").click()
    sync_api.expect(visit.page.locator("pre")).to_contain_text("⟨Q⟩⟨:⟩")
    visit.keep("text")
    visit.page.get_by_role("button", name="The exact prompt").click()


def test_a_turn_with_an_upload(visit: Visit) -> None:
    visit.upload("grey.png", picture_file(64, 64))
    visit.expect_status("grey.png goes with the next turn")
    visit.say("what do you see?")
    sync_api.expect(visit.log.get_by_alt_text("grey.png")).to_be_visible()
    visit.keep("upload")


def test_a_picture_for_who_asks_for_one(visit: Visit) -> None:
    """A newcomer's first sentence finds a red ball on the grass; the same words are answered in words where the mode says so."""
    truths = json.loads((ROOT / "data/mini/rendered/vist/truth.json").read_text())
    visit.say("show me a red ball on the grass")
    visit.expect_status("3 images found")
    name = visit.pictures().first.inner_text().partition(",")[0]
    scene = scene_from_truth(truths[name.removesuffix(".jpg")])
    assert {"redball", "grass"} <= scene.facts()
    visit.keep("asked")
    visit.page.get_by_label("Reply").select_option("Words")
    visit.say("show me a red ball on the grass")
    sync_api.expect(visit.log.locator(".question")).to_have_count(2)
    sync_api.expect(visit.pictures()).to_have_count(3)
    visit.page.get_by_label("Reply").select_option("The model decides")


def test_a_turn_that_returns_images(visit: Visit) -> None:
    """An example finds images; a click puts one into the next turn, and undo takes turns back."""
    visit.button("A picture as a pencil drawing").click()
    visit.expect_status("3 images found")
    sync_api.expect(visit.pictures()).to_have_count(3)
    name = visit.pictures().first.inner_text()
    visit.pictures().first.click()
    visit.expect_status("goes with the next turn")
    visit.keep("image")
    visit.say("on the grass")
    sync_api.expect(visit.log.locator(".question")).to_have_count(2)
    assert visit.log.locator(".question").last.get_by_alt_text(name).count() == 1
    visit.button("Undo").click()
    sync_api.expect(visit.log.locator(".question")).to_have_count(1)
    visit.button("Undo").click()
    visit.expect_empty()


def test_examples_of_several_turns(visit: Visit) -> None:
    visit.button("Ask about a picture").click()
    sync_api.expect(visit.log.locator(".answer")).to_have_count(3, timeout=PATIENCE)
    visit.button("Refine over turns").click()
    sync_api.expect(visit.pictures()).to_have_count(9, timeout=PATIENCE)
    visit.expect_status("Done")
    visit.keep("refinement")
    log = visit.log.evaluate("box => [box.scrollHeight > box.clientHeight, Math.abs(box.scrollTop)]")
    assert log[0] and log[1] < 5  # laid out from the end: the newest turn is in sight
    visit.button("A dialogue that ends in an image").click()
    sync_api.expect(visit.pictures()).to_have_count(3, timeout=PATIENCE)
    visit.keep("dialogue")


def test_picture_of_the_readme(visit: Visit) -> None:
    """A picture to draw, then a question about what was found; `make picture` puts this into the README."""
    visit.button("A picture as a pencil drawing").click()
    visit.expect_status("3 images found")
    visit.pictures().first.click()
    visit.expect_status("goes with the next turn")
    visit.say("what do you see?")
    visit.keep("readme")


def test_stop_edit_and_regenerate(visit: Visit) -> None:
    visit.say("what do you see?")
    visit.button("Edit last").click()
    sync_api.expect(visit.message).to_have_value("what do you see?")
    visit.message.fill("is it big?")
    visit.button("Send changed").click()
    sync_api.expect(visit.log.locator(".question")).to_have_text("is it big?", timeout=PATIENCE)
    visit.button("Regenerate").click()
    visit.expect_status("Done")
    questions = visit.log.locator(".question")
    for _ in range(5):  # the example may be over, or at its third and last question, before the click
        visit.button("Refine over turns").click()
        try:
            visit.button("Stop").click(timeout=2000)
            sync_api.expect(visit.status).to_contain_text("Stopped", timeout=3000)
        except (AssertionError, sync_api.TimeoutError):
            sync_api.expect(visit.button("Send")).to_be_enabled()
        else:
            if questions.count() < 3:
                break
    visit.expect_status("Stopped")
    assert questions.count() < 3


def test_saved_and_loaded(visit: Visit, tmp_path: Path) -> None:
    visit.say("what do you see?")
    visit.page.get_by_role("button", name="Save and load").click()
    visit.button("Save dialogue").click()
    with visit.page.expect_download() as download:
        visit.page.get_by_text("dialogue.json").click()
    download.value.save_as(tmp_path / "dialogue.json")
    visit.button("New dialogue").click()
    visit.expect_empty()
    with visit.page.expect_file_chooser() as chooser:
        visit.page.get_by_role("button", name="Load dialogue").click()
    chooser.value.set_files(tmp_path / "dialogue.json")
    sync_api.expect(visit.log.locator(".question")).to_have_text("what do you see?")
    visit.page.get_by_role("button", name="Save and load").click()


def test_errors_are_words_and_the_dialogue_goes_on(visit: Visit) -> None:
    visit.message.press("Enter")
    visit.expect_status("Nothing to send yet")
    visit.upload("notes.png", b"this is a text")
    visit.expect_status("notes.png is not an image")
    visit.upload("huge.png", picture_file(8000, 5000, "1"))
    visit.expect_status("huge.png has 40 megapixels")
    sync_api.expect(visit.page.get_by_role("alert")).to_be_visible()
    visit.keep("error")
    visit.say("what do you see?")


def test_two_people_at_once_do_not_meet(visit: Visit, visits: list[Visit]) -> None:
    said = ("what is the ground?", "is it big?")
    for one, text in zip(visits, said):
        one.message.fill(text)
    for one in visits:
        one.message.press("Enter")
    for one, text in zip(visits, said):
        one.expect_status("Done")
        sync_api.expect(one.log.locator(".question")).to_have_text(text)


def test_everything_has_a_name_and_the_keyboard_reaches_it(visit: Visit) -> None:
    closed = open_sections(visit)
    visit.keep("settings")
    unnamed = visit.page.eval_on_selector_all(
        ".fromage button, .fromage input, .fromage select, .fromage img, .fromage [tabindex], .fromage [role=slider]",
        "all => all.filter(one => one.offsetParent && !(one.innerText || one.alt || one.title || one.ariaLabel || (one.labels || []).length))"
        ".map(one => one.outerHTML)")
    assert unnamed == []
    for name in closed:
        visit.button(name.replace("▸", "▾")).click()
    visit.message.focus()
    reached = set()
    for _ in range(6):
        visit.page.keyboard.press("Tab")
        reached.add(visit.page.evaluate("document.activeElement.innerText.trim()"))
    assert {"Send", "Upload image (0)"} <= reached


# texts whose contrast with the colour behind them is below 4.5
FAINT = """() => {
  const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const bright = colour => colour.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = one => { for (; one; one = one.parentElement) { const colour = numbers(getComputedStyle(one).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour; } return [255, 255, 255]; };
  const ratio = one => { const style = getComputedStyle(one);
    const both = [bright(numbers(one.tagName === 'text' ? style.fill : style.color)), bright(behind(one))].sort((a, b) => a - b);
    return (both[1] + 0.05) / (both[0] + 0.05); };
  const texts = [...document.querySelectorAll('.fromage *')].filter(one => one.checkVisibility() && !one.closest('[disabled], style, option') &&
    (one.value || [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())));
  return [texts.length, texts.filter(one => ratio(one) < 4.5).map(one => one.outerHTML.slice(0, 120))]; }"""
# what sticks out of the window, and what scrolls sideways (the plot of a long reply may)
WIDE = """() => [...document.querySelectorAll('body *')].filter(one => one.checkVisibility() && !one.closest('svg, [style*=overflow-x]') &&
  (one.getBoundingClientRect().right > innerWidth + 1 ||
   ['auto', 'scroll'].includes(getComputedStyle(one).overflowX) && one.scrollWidth > one.clientWidth + 1)).map(one => one.outerHTML.slice(0, 120))"""
FOCUSED = """() => { const one = document.activeElement, style = getComputedStyle(one);
  const name = (one.labels && one.labels[0] || one).innerText.trim().split('\\n')[0];
  return [one === document.body ? '' : name, style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2]; }"""


def open_sections(visit: Visit) -> list[str]:
    """Opens every part of the page that is closed; their names."""
    closed = [button.inner_text() for button in visit.page.locator(".fromage-section").all() if "▸" in button.inner_text()]
    for name in closed:
        visit.button(name).click()
    sync_api.expect(visit.page.get_by_label("Temperature")).to_be_visible()
    return closed


def test_dark_colours_and_a_phone(visit: Visit) -> None:
    """Every text has contrast, whichever colours the system asks for; nothing sticks out of a narrow screen."""
    page = visit.page
    visit.say("show me a red ball on the grass")
    page.emulate_media(color_scheme="dark")
    visit.keep("dark")
    closed = open_sections(visit)
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        number, faint = page.evaluate(FAINT)
        assert number > 50 and faint == [], scheme
    page.emulate_media(color_scheme="dark")
    whole = "['.fromage', '#rendered_cells'].map(name => getComputedStyle(document.querySelector(name)).backgroundColor)"
    assert page.evaluate(whole) == ["rgb(22, 24, 28)"] * 2
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    assert page.evaluate(WIDE) == []
    page.locator("h1").scroll_into_view_if_needed()
    visit.keep("phone")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 980})
    for name in closed:
        visit.button(name.replace("▸", "▾")).click()


def test_by_keyboard_alone(visit: Visit) -> None:
    """A turn, every control by Tab in the page's order with a visible focus, and what was said copied."""
    page = visit.page
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("document.activeElement.blur()")
    reached: list[str] = []
    while "Message" not in reached and len(reached) < 40:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED)[0])
    page.keyboard.type("what do you see?")
    page.keyboard.press("Enter")
    visit.expect_status("Done")
    visit.button("▸ Save and load").press("Enter")
    visit.button("▸ Model and pictures").press(" ")
    visit.message.focus()
    order = ["Message"]
    while order[-1] != "Use this folder" and len(order) < 60:
        page.keyboard.press("Tab")
        name, seen = page.evaluate(FOCUSED)
        assert seen, f"{name}: no visible focus"
        order.append(name)
    expected = ["Message", "Send", "Upload image (0)", "Reply", "Undo", "New dialogue", "▾ Images to start from", "Other images", "▸ Settings",
                "Copy dialogue", "Save dialogue", "▾ Model and pictures", "Checkpoint", "Own folder", "Use this folder"]
    assert [name for name in order if name in expected] == expected
    visit.button("Copy dialogue").press("Enter")
    sync_api.expect(page.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()").startswith("You: what do you see?\nFROMAGe: ")
    visit.button("▾ Save and load").click()
    visit.button("▾ Model and pictures").click()


def test_another_model_and_a_folder_of_ones_own(visit: Visit, runs: dict[str, str], tmp_path: Path) -> None:
    """The dialogue goes on with both; what cannot be used is said in a line and changes nothing."""
    page = visit.page
    visit.say("what do you see?")
    visit.button("▸ Model and pictures").click()
    checkpoint, own = page.get_by_label("Checkpoint"), page.get_by_label("Own folder")
    first = checkpoint.input_value()
    checkpoint.select_option(runs["broken"])
    visit.expect_status(f"{runs['broken']} cannot be used")
    sync_api.expect(checkpoint).to_have_value(first)
    checkpoint.select_option(runs["good"])
    visit.expect_status(f"Now {runs['good']} answers; the dialogue goes on")
    for number, name in enumerate(sorted((ROOT / "data/mini/rendered/vist/images").glob("*.jpg"))[:70]):
        Image.open(name).save(tmp_path / f"{number:02}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.evaluate("window.told = []; new MutationObserver(() => told.push(document.querySelector('.fromage .status').innerText))"
                  ".observe(document.querySelector('.fromage'), {subtree: true, childList: true})")
    own.fill(str(tmp_path))
    own.press("Enter")
    visit.expect_status("1 cannot be used (broken image: 1)")
    assert visit.status.inner_text().startswith(f"70 images of {tmp_path}, ")
    assert any("of 71 images" in line for line in page.evaluate("told"))
    sync_api.expect(page.locator(".lead")).to_contain_text("found among 70")
    visit.say("show me a red ball on the grass")
    sync_api.expect(visit.log.locator(".question")).to_have_count(2)
    assert visit.pictures().first.inner_text().partition(",")[0] in {f"{number:02}.png" for number in range(70)}
    visit.keep("folder")
    own.fill("nowhere")
    visit.button("Use this folder").click()
    visit.expect_status("nowhere is no folder of the machine that runs this page")
    own.fill("data/mini/rendered/vist/images")
    own.press("Enter")
    visit.expect_status("images of ")
    checkpoint.select_option(first)
    visit.expect_status(f"Now {first} answers")
    visit.button("▾ Model and pictures").click()


def test_a_busy_port_is_said(servers: dict[str, Server], environment: dict[str, str]) -> None:
    assert servers["demo"].address
    port = str(servers["demo"].port)
    done = subprocess.run([sys.executable, "-m", "fromage.chat.command", "demo", "--port", port], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and f"port {port} cannot be used" in done.stderr and "make demo PORT=" in done.stderr


def test_nothing_leaves_the_machine(visit: Visit) -> None:
    """A turn with an upload and one that finds images: no request to any other address."""
    visit.upload("grey.png", picture_file(64, 64))
    visit.expect_status("grey.png goes with the next turn")
    visit.say("show me a red ball on the grass")
    assert visit.page.evaluate("performance.getEntriesByType('resource').length") > 0
    assert visit.asked == []


def test_foreign_requests_and_sources_are_refused(servers: dict[str, Server], visit: Visit) -> None:
    check_refusals(servers["demo"].address, "chat.ipynb")


def test_in_jupyterlab(browser, servers: dict[str, Server]) -> None:
    """All cells run, one turn; in the page without an index, what needs one is refused in words."""
    visit = Visit(browser, f"{servers['lab'].address}lab/tree/chat.ipynb")
    page = visit.page
    page.get_by_text("Python 3 (ipykernel) | Idle").first.wait_for(timeout=PATIENCE)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    whole, lonely = page.locator(".fromage").first, page.locator(".fromage").nth(1)
    sync_api.expect(lonely).to_contain_text("there is no image index", timeout=PATIENCE)
    lonely.get_by_role("button", name="Refine over turns").click()
    sync_api.expect(lonely.locator(".status")).to_contain_text("There is no image index", timeout=PATIENCE)
    lonely.get_by_role("button", name="Ask about a picture").click()
    sync_api.expect(lonely.locator(".status")).to_contain_text("needs an image index", timeout=PATIENCE)
    whole.get_by_label("Message").press_sequentially("what do you see?", delay=30)
    whole.get_by_label("Message").press("Enter")
    sync_api.expect(whole.locator(".status")).to_contain_text("Done", timeout=PATIENCE)
    sync_api.expect(whole.locator(".question")).to_have_text("what do you see?")
    whole.locator("h1").scroll_into_view_if_needed()
    visit.keep("jupyterlab")
    visit.context.close()
