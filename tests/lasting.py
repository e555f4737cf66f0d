"""The dialogue page under scripted sessions beside a training at `mini`, for an hour: memory stays as it is, nothing fails."""

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from fromage.core.attacks import DONE, house_key
from browsing import CHROMIUM, OPTIONS, PATIENCE, Server, Visit, server_environment, sync_api, wait_for_rest
from house_rules import ROOT
from PIL import Image
from processes import Watch

SESSIONS, MOST_GROWTH = 4, 5.0  # %
START = 1800.0  # seconds that a kernel may take to be ready, on a machine that does much else
EVERY = 5.0  # seconds from one look at the memory to the next
SAID = ("what do you see?", "show me a red ball on the grass", "Q: what colour is the ball?\nA:", "show me a big blue box at night",
        "is there a boat?", "find a small yellow ball", "tell me more", "show me two things on the sand")
UPLOADED, RENEWED, RELOADED = 5, 8, 30  # turns from one upload, new dialogue and reload to the next
TRAINING = "from papermill_runs import run_notebook; run_notebook('train', preset='mini', steps=10**7, output={0!r}, report={1!r})"


@dataclass
class Seen:
    """What the sessions did, and what went wrong."""
    turns: int = 0
    uploads: int = 0
    reloads: list[float] = field(default_factory=list)  # seconds until the page is there again
    seconds: list[float] = field(default_factory=list)  # of a turn of all sessions
    errors: list[str] = field(default_factory=list)


def picture() -> bytes:
    """A picture of the miniature world."""
    buffer = io.BytesIO()
    Image.open(min((ROOT / "data/mini/rendered/vist/images").iterdir())).save(buffer, "PNG")
    return buffer.getvalue()


def send(visit: Visit, number: int, session: int, seen: Seen) -> None:
    """What a session does in its turn, up to the message; sessions do the rare things at different times."""
    turn = number + session * 2
    if turn % RELOADED == RELOADED - 1:
        begun = time.monotonic()
        visit.page.reload(wait_until="commit")
        visit.expect_empty()
        seen.reloads.append(time.monotonic() - begun)
    elif turn % RENEWED == RENEWED - 1 and visit.button("New dialogue").is_enabled():
        visit.button("New dialogue").click()
        visit.expect_empty()
    if turn % UPLOADED == UPLOADED - 1:
        visit.upload(f"{turn}.png", picture())
        visit.expect_status(f"{turn}.png goes with the next turn")
        seen.uploads += 1
    visit.message.fill(SAID[turn % len(SAID)])
    visit.message.press("Enter")


def tell(words: str) -> None:
    """A line with the time, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def take_turn(visits: list[Visit], number: int, seen: Seen) -> None:
    """Every session says something, before any has its answer."""
    begun = time.monotonic()
    for session, visit in enumerate(visits):
        send(visit, number, session, seen)
    for visit in visits:
        sync_api.expect(visit.message).to_have_value("", timeout=PATIENCE)
        visit.expect_status("Done")
        seen.turns += 1
        seen.errors += [f"the page says: {each.inner_text()}" for each in visit.page.locator(".fromage .error").all()]
    seen.seconds.append(time.monotonic() - begun)


def halves(samples: list[float]) -> dict[str, Any]:
    """Mean memory in both halves, and by how much the last is more."""
    middle = len(samples) // 2
    first, last = (sum(part) / len(part) for part in (samples[:middle], samples[middle:]))
    return {"first half (MiB)": round(first, 1), "last half (MiB)": round(last, 1), "growth (%)": round(100 * (last / first - 1), 2),
            "peak (MiB)": round(max(samples), 1), "samples": len(samples)}


def start_training(folder: Path) -> subprocess.Popen:
    """A training at `mini` that does not end, in a process of its own."""
    code = TRAINING.format(str(folder / "training"), str(folder / "report"))
    paths = os.pathsep.join([str(Path(__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")])
    with open(folder / "training.txt", "w") as log:
        return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": paths},
                                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def wait_for_state(training: subprocess.Popen, folder: Path) -> Path:
    """The training's state, once there is one."""
    state = folder / "training" / "state.safetensors"
    while not state.exists():
        assert training.poll() is None, (folder / "training.txt").read_text()[-2000:]
        time.sleep(0.5)
    return state


def steps_of(state: Path) -> int:
    """Steps of a training that was ended."""
    from fromage.core.tensors import load_newest
    return len(load_newest(state, "training state")[1]["history"])


def endure(minutes: float, folder: Path) -> tuple[Seen, dict[str, list[float]], int]:
    """Both, for so long: what was seen, the memory of each, and the training's steps."""
    seen, training = Seen(), start_training(folder)
    server = Server("fromage.chat.command", ["demo", "--port", "{port}"], folder, server_environment(folder))
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS, headless=True)
            visits = []
            for number in range(SESSIONS):
                wait_for_rest(server, number, START)
                visit = Visit(browser, server.address)
                visit.page.on("pageerror", lambda error: seen.errors.append(f"in the page: {error}"))
                visit.expect_empty()
                visits.append(visit)
                tell("a page is there")
            state = wait_for_state(training, folder)
            tell("the training has begun")
            take_turn(visits, 0, Seen())  # everything is loaded once before the clock starts
            end, number = time.monotonic() + 60 * minutes, 0
            with Watch({"page": server.process.pid, "training": training.pid}, EVERY) as watch:
                while time.monotonic() < end:
                    number += 1
                    print(f"{DONE}{minutes - (end - time.monotonic()) / 60:.2f}", flush=True)
                    take_turn(visits, number, seen)
                    tell(f"turn {number}: {seen.seconds[-1]:.1f} s, " + ", ".join(
                        f"{name} {values[-1]:.0f} MiB" for name, values in watch.samples.items() if values))
                    if training.poll() is not None:
                        seen.errors.append(f"the training ended: {(folder / 'training.txt').read_text()[-300:]}")
                        break
            browser.close()
    finally:
        server.stop()
        training.kill()
        training.wait()
    seen.errors += [line for line in server.log.read_text().splitlines() if re.search(r"Traceback|Error\b|\| ERROR", line)]
    return seen, watch.samples, steps_of(state)


def main(minutes: float, folder: str) -> int:
    """Endures, writes the record, and prints what was found; how much that is."""
    from fromage.core.records import start_record
    record = start_record("lasting", {"minutes": minutes, "sessions": SESSIONS, "most growth (%)": MOST_GROWTH,
                                      "code": house_key()}, 0)
    with tempfile.TemporaryDirectory() as scratch:
        seen, samples, steps = endure(minutes, Path(scratch))
    memory = {name: halves(values) for name, values in samples.items()}
    grown = [f"{name}: {each['growth (%)']} % more memory in the last half" for name, each in memory.items()
             if each["growth (%)"] > MOST_GROWTH]
    found = seen.errors + grown
    record.finish({"minutes": minutes, "turns": seen.turns, "uploads": seen.uploads, "reloads": len(seen.reloads),
                   "half of all reloads within (s)": round(median(seen.reloads or [0]), 2),
                   "slowest turn of all sessions (s)": round(max(seen.seconds), 2), "training steps": steps,
                   "errors": len(seen.errors), "found": len(found),
                   "memory": memory, "samples (MiB)": {name: [round(each) for each in values[::12]] for name, values in samples.items()}},
                  {"found": found[:20]})
    record.finding = (f"{minutes:g} minutes, {SESSIONS} sessions, {seen.turns:,} turns beside {steps:,} steps of training: "
                      f"{len(seen.errors)} errors; memory in the last half "
                      + ", ".join(f"{each['growth (%)']:+.1f} % ({name})" for name, each in memory.items()) + ".")
    print(f"{record.save(f'{folder}/lasting.json')}: {record.finding}", *found[:20], sep="\n")
    return len(found)


if __name__ == "__main__":
    sys.exit(bool(main(float(sys.argv[1]), sys.argv[2])))
