"""In a copy of the repository: clean and export change nothing, and papermill's tag survives cleaning."""

import json
import re
import shutil
import subprocess
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from PIL import Image
from fromage.core.paper import PAPER_CLAIMS, answer_claim
from fromage.core.records import PACKAGES, load_record
from fromage.mini.rendering import check_manifest
from house_rules import ROOMS, ROOT, library, read_notebooks, runs
from tracing import figures_of, unfounded, unlike_records, unreproducible, untraced

KEPT = ["nbs", "fromage", "settings.ini", "pyproject.toml", "setup.py", "README.md"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The notebooks, the modules and the settings, copied."""
    for name in KEPT:
        source, target = ROOT / name, tmp_path / name
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(source, target, ignore=ignored) if source.is_dir() else shutil.copy(source, target)
    return tmp_path


def run(command: str, folder: Path) -> None:
    """Runs one of nbdev's commands in a folder."""
    done = subprocess.run([command], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def differences(folder: Path) -> list[str]:
    """Files that are not as they are in the repository: changed, new or gone."""
    def contents(root: Path) -> dict[str, bytes]:
        paths = [path for name in KEPT for path in (root / name, *(root / name).rglob("*")) if path.is_file()]
        found = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
        return {name: content for name, content in found.items() if not re.search(r"(^|/)\.|\.pyc$", name)}

    here, there = contents(ROOT), contents(folder)
    return sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))


@pytest.mark.parametrize("command", ["nbdev_clean", "nbdev_export"])
def test_nothing_changes(copy: Path, command: str) -> None:
    run(command, copy)
    assert differences(copy) == []


def test_changes_are_seen(copy: Path) -> None:
    path = copy / "nbs" / "core" / "00_config.ipynb"
    node = nbformat.read(path, as_version=4)
    source, litter = "#| export\nadded = 1", {"metadata": {"collapsed": True}, "execution_count": 3}
    node.cells.append(nbformat.v4.new_code_cell(source, id="added", **litter))
    nbformat.write(node, path)
    assert differences(copy) == ["nbs/core/00_config.ipynb"]
    written = path.read_bytes()
    run("nbdev_clean", copy)
    assert path.read_bytes() != written
    run("nbdev_export", copy)
    assert "fromage/core/config.py" in differences(copy)


def test_an_export_into_an_empty_folder_is_complete(copy: Path) -> None:
    for path in (copy / "fromage").rglob("[a-z]*.py"):
        path.unlink()
    run("nbdev_export", copy)
    assert differences(copy) == []


def test_the_parameters_tag_survives_cleaning(copy: Path) -> None:
    cell = nbformat.v4.new_code_cell("steps: int = 1  # steps", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), copy / "nbs" / "probe.ipynb")
    before = {notebook.name: [cell.tags for cell in notebook.cells] for notebook in runs(read_notebooks(copy / "nbs"))}
    run("nbdev_clean", copy)
    after = {notebook.name: [cell.tags for cell in notebook.cells] for notebook in runs(read_notebooks(copy / "nbs"))}
    assert before == after and after["probe"] == [("parameters",)]


def test_the_readme_names_every_notebook_and_no_other() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| \[`([a-z]+)`\]\([^)]+\) \|(.*)\|$", text, re.M))
    assert tuple(table) == ROOMS, "the README's table of rooms"
    named = {f"{room}.{name}" for room, line in table.items() for name in re.findall(r"`([a-z_]+)`", line)}
    assert named == {notebook.module for notebook in library(read_notebooks())}
    listed = re.search(r"runs \(papermill\): ([a-z_ ·]+)", text)[1].split(" · ")
    assert {name.strip() for name in listed} == {notebook.name for notebook in runs(read_notebooks())}


def test_the_readme_answers_at_most_ten_questions_of_the_paper() -> None:
    """In its order; and no claim of the page of claims is without a record, none of the page's lines without a claim."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- results -->")[1].split("<!-- /results -->")[0]
    asked = re.findall(r"^\| ([^|]+\?) \|", table, re.M)
    assert 0 < len(asked) <= 10 and asked == [claim.question for claim in PAPER_CLAIMS if claim.question]
    records = {path.stem: load_record(path) for path in (ROOT / "reports").glob("*.json")}
    told = [answer_claim(claim, records) for claim in PAPER_CLAIMS]
    lines = re.findall(r"^\| (.+?) \| (.+?) \|", (ROOT / "reports" / "claims.md").read_text(encoding="utf-8"), re.M)[2:]
    assert lines == [(each.claim.place, each.claim.text) for each in told]


DOCUMENTS = ("README.md", "data/README.md", *(f"nbs/pages/{path.name}" for path in (ROOT / "nbs/pages").glob("*.md")))
RECORDS = {path.stem: load_record(path) for path in sorted((ROOT / "reports").glob("*.json"))}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_figure_of_a_document_is_traced(document: str) -> None:
    """To a block that is written from records, to a record or the code, to the paper, or to whoever says it."""
    text = (ROOT / document).read_text(encoding="utf-8")
    assert untraced(document, text) + unfounded(document, text, RECORDS) == []


def test_what_is_written_from_records_is_what_the_records_say() -> None:
    readme, claims = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "reports/claims.md"))
    assert unlike_records(readme, claims, RECORDS) == []
    assert {path.name for path in (ROOT / "reports").glob("*.md")} == {"claims.md", "conformance.md"}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_has_a_commit_and_a_command(name: str) -> None:
    assert unreproducible(name, RECORDS[name]) == []


def test_a_planted_figure_is_found() -> None:
    """In the table, in prose, as a word, in a traced phrase, on the page of claims; a record without its origin too."""
    readme, claims, data = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "reports/claims.md", "data/README.md"))
    cell = re.search(r"\d\d\.\d \[", readme)[0]
    assert len(unlike_records(readme.replace(cell, "99.9 [", 1), claims, RECORDS)) == 1
    assert len(unlike_records(readme, claims.replace("borne out", "undecided", 1), RECORDS)) == 1
    for planted in ("It finds 77 % of images.", "It is three times faster.", "| speed | 12 |", "A loss of 2.31."):
        assert len(untraced("README.md", f"{readme}\n{planted}\n")) == 1, planted
    assert untraced("README.md", f"{readme}\n[12.5](x/12.5) `4.5 GB`\n```\n7 GB\n```\n")[0].startswith("README.md: 12.5")
    assert unfounded("data/README.md", data.replace("827 s on", "82 s on"), RECORDS) != []
    assert untraced("data/README.md", data.replace("827 s on", "82 s on")) != []
    longer = {**RECORDS, "train-mini": replace(RECORDS["train-mini"], seconds=900.0)}
    assert unfounded("data/README.md", data, longer) == ["data/README.md: '827 s on two cores' is 900, 2"]
    assert unfounded("data/README.md", data.replace("(paper)", ""), RECORDS) != []
    assert len(unreproducible("x", replace(RECORDS["train-mini"], git={"commit": None}))) == 1
    assert figures_of("In `3 GB` of 2026, three maps and 5 rooms.") == []


def test_a_record_names_the_version_of_whatever_is_required() -> None:
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    kinds = ("requirements", "faiss_requirements", "packed_requirements", "real_requirements")
    required = {re.match(r"[\w-]+", each)[0] for kind in kinds for each in settings["DEFAULT"][kind].split()}
    assert {re.sub("[-_]", "-", each) for each in required} <= {re.sub("[-_]", "-", each) for each in PACKAGES}


def test_a_run_notes_its_command() -> None:
    code = {each.name: "\n".join(cell.source for cell in each.code) for each in runs(read_notebooks())}
    assert [name for name, text in code.items() if "start_record(" in text] == []
    assert {name for name, text in code.items() if f'start_run("{name}", ' in text} >= {record.run for record in RECORDS.values()}


def test_what_the_documents_link_to_is_there() -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"papermill (nbs/\S+)", text)
        assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_shipped_files_are_those_of_the_manifest() -> None:
    """Nothing is changed, missing or beside them, and all of it is small."""
    place = ROOT / "data" / "mini"
    listed = json.loads((place / "manifest.json").read_text())["files"]
    shipped = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()
               and path.relative_to(place).parts[0] != "rendered" and path.name != "manifest.json" and path.name[0] != "."}
    assert check_manifest(place) == [] and shipped == set(listed)
    assert sum((place / name).stat().st_size for name in listed) <= 24 * 2**20


def test_the_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They load the shipped checkpoint, answer about a picture and find images in a folder."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    (tmp_path / "folder" / "of" / "images").mkdir(parents=True)
    for name in ("picture.jpg", "folder/of/images/a.png", "folder/of/images/b.png"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    code = code.replace("picture.jpg", str(tmp_path / "picture.jpg")).replace("folder/of/images", str(tmp_path / "folder/of/images"))
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(code.replace("k=5", "k=2"), names)
    assert isinstance(names["answer"], str) and names["answer"]
    assert {name for name, _ in names["images"]} == {"a.png", "b.png"}


def test_no_example_rates_a_study_that_a_report_makes_anew() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rebuilt = re.findall(r"-p output (data/[\w/-]+)", makefile)
    cells = [cell.source for notebook in read_notebooks() for cell in notebook.cells]
    examples = [folder for text in (makefile, (ROOT / "README.md").read_text(encoding="utf-8"), *cells)
                for found in re.findall(r"STUDY=(\S+)|-p study (\S+)(?= -y '\{simulated: false)", text) for folder in found if folder]
    examples = [folder for folder in examples if folder.startswith("data/")]
    assert len(examples) >= 5 and "data/runs/tell_stories-mini" in rebuilt
    assert not [folder for folder in examples if any(folder.startswith(f"{each}/") for each in rebuilt)]
