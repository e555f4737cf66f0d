"""A wheel travels: built from a copy, unpacked, and used in an empty folder that knows no repository."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import nbformat
import pytest
from fromage.core.site import HOW_TO
from PIL import Image
from house_rules import ROOT, read_notebooks, runs

KEPT = ["nbs", "fromage", "settings.ini", "pyproject.toml", "setup.py", "README.md", "LICENSE"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unpacked wheel, made without a network."""
    source, made, site = (tmp_path_factory.mktemp(name) for name in ("source", "made", "site"))
    ignored = shutil.ignore_patterns("__pycache__", ".*", "rendered*")
    for name in KEPT:
        shutil.copytree(ROOT / name, source / name, ignore=ignored) if (ROOT / name).is_dir() \
            else shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "data/mini", source / "data/mini", ignore=ignored)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", made, source]
    done = subprocess.run(build, cwd=source, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    zipfile.ZipFile(next(made.glob("*.whl"))).extractall(site)
    return site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with two pictures and nothing else."""
    (tmp_path / "pictures").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "pictures" / f"{colour}.png")
    return tmp_path


def python(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Python with the unpacked wheel, in the working folder."""
    environment = {name: value for name, value in os.environ.items() if name != "FROMAGE_ROOT"} | {"PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=300)


def test_the_wheel_holds_everything_that_is_needed(site: Path) -> None:
    shipped = site / "fromage" / "shipped"
    assert (site / "fromage/py.typed").is_file()
    assert {path.stem for path in (shipped / "nbs").rglob("*.ipynb")} >= {notebook.name for notebook in runs(read_notebooks())}
    commands = next(site.glob("*.dist-info")) / "entry_points.txt"
    assert "fromage = fromage.chat.command:main" in commands.read_text()


def test_the_shipped_model_opens_in_an_empty_folder(site: Path, folder: Path) -> None:
    code = ("import fromage, sys; from fromage.model.assistant import open_assistant; from PIL import Image; a = open_assistant('mini');"
            "print(fromage.__file__); picture = Image.open('pictures/red.png');"
            "print(a.ask([picture, 'Q: what colour is the ball?\\nA:'])); print(a.find(['a red ball'], a.index('pictures'), k=2))")
    done = python(site, folder, "-c", code)
    assert done.returncode == 0, done.stderr
    where, answer, found = done.stdout.splitlines()
    assert Path(where).is_relative_to(site) and answer and "red.png" in found and "blue.png" in found
    assert (folder / "data/runs/indexes").is_dir()


def place_pictures(folder: Path) -> None:
    """What the README's lines speak of: `picture.jpg` and `folder/of/images`."""
    (folder / "folder/of").mkdir(parents=True)
    (folder / "pictures").rename(folder / "folder/of/images")
    Image.open(folder / "folder/of/images/red.png").save(folder / "picture.jpg")


def test_the_lines_of_the_readme_run_in_an_empty_folder(site: Path, folder: Path) -> None:
    """And within the minute that it promises."""
    blocks = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    lines = next(block.partition("```")[0] for block in blocks if "open_assistant" in block)
    assert "assistant.ask(" in lines and "assistant.find(" in lines
    place_pictures(folder)
    began = time.monotonic()
    lines = lines.replace("k=5", "k=2")  # here are two pictures, not five
    done = python(site, folder, "-c", f"{lines}\nprint(answer)\nprint(len(images))")
    assert done.returncode == 0, done.stderr
    answer, count = done.stdout.splitlines()
    assert answer and count == "2" and time.monotonic() - began < 60


def test_the_commands_of_the_readme_run_in_an_empty_folder(site: Path, folder: Path) -> None:
    place_pictures(folder)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^fromage (?:ask|find) .*$", text, re.M)]
    assert [words[1] for words in commands] == ["ask", "find"]
    for words in commands:
        done = python(site, folder, "-m", "fromage.chat.command", *words[1:])
        assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_the_demo_opens_in_an_empty_folder(site: Path, folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    known = {name: value for name, value in os.environ.items() if name != "FROMAGE_ROOT"} | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "fromage.chat.command", "demo", "--port", str(port)]
    with open(folder / "log", "w") as log, subprocess.Popen(
            command, cwd=folder, env=known, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True) as demo:
        try:
            for _ in range(600):
                assert demo.poll() is None, (folder / "log").read_text()
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=120) as answer:
                    page = answer.read().decode()
                    break
                time.sleep(0.1)
        finally:
            os.killpg(demo.pid, signal.SIGTERM)
    assert "widget-view+json" in page and "voila_finish" in page and "Traceback" not in page, page[-3000:]


@pytest.mark.parametrize("page", HOW_TO)
def test_the_lines_of_the_pages_run_in_an_empty_folder(page: str, site: Path, folder: Path) -> None:
    (folder / "my").mkdir()
    (folder / "pictures").rename(folder / "my/pictures")
    text = (ROOT / f"nbs/pages/{page}.md").read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    done = python(site, folder, "-c", lines.replace("k=3", "k=2"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or not lines


def test_the_command_runs_a_notebook(site: Path, folder: Path) -> None:
    words = ["--captions", "pictures", "--form", "folder", "--output", "store", "--shown", "1"]
    done = python(site, folder, "-m", "fromage.chat.command", "prepare", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "reports/prepare.ipynb").is_file() and list((folder / "store").iterdir())


def test_every_line_of_the_tutorial_runs_in_an_empty_folder(site: Path, folder: Path) -> None:
    done = python(site, folder, "-m", "fromage.chat.command", "tutorial", "--steps", "20", "--pictures", "256")
    assert done.returncode == 0, done.stdout + done.stderr
    cells = nbformat.read(folder / "reports/tutorial.ipynb", as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert len(code) > 12 and all(cell.execution_count for cell in code)
    assert "first pictures are right" in str(code) and (folder / "data/runs/tutorial/best.safetensors").is_file()


def test_a_run_refuses_what_is_not_allowed(site: Path, folder: Path) -> None:
    done = python(site, folder, "-m", "fromage.chat.command", "train", "--steps", "many")
    assert done.returncode == 1 and "steps = 'many': allowed is int" in done.stderr and "Traceback" not in done.stderr
    done = python(site, folder, "-m", "fromage.chat.command", "train", "--lrr", "1")
    assert done.returncode == 2 and "unrecognized arguments: --lrr 1" in done.stderr
