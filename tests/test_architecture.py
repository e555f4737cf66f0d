"""The house rules hold, and each rule finds what it forbids."""

import ast
import json
import subprocess
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path
from sys import stdlib_module_names

import house_rules as rules
import nbformat
import pytest
import yaml
from fromage.core.rooms import count_arrows, place_rooms
from house_rules import ROOT, Cell, Notebook
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NOTEBOOKS = rules.read_notebooks()
RULES = [rules.names, rules.openings, rules.imports, rules.needs, rules.cell_sizes, rules.prose, rules.parameters, rules.definitions,
         rules.identifiers, rules.duplicates, rules.meanings, rules.documentation, rules.examples, rules.refusals]


def notebook(name: str, *sources: str, tags: tuple[str, ...] = ()) -> Notebook:
    """A notebook from sources; one that starts with `md ` is markdown, and `tags` are those of the last cell."""
    cells = [Cell(f"{name}, cell {place}", "markdown" if source.startswith("md ") else "code", source.removeprefix("md "),
                  tags if place == len(sources) - 1 else (), f"id{place}") for place, source in enumerate(sources)]
    return Notebook(name, tuple(cells))


DOUBLE = '#| export\ndef double(x: int) -> int:\n    """2 x."""\n    return 2 * x'
TREBLE = DOUBLE.replace("double", "treble").replace("2", "3")
USED = notebook("eval", "from fromage.core.third import treble")
GOOD = [
    notebook("core/00_first", "#| default_exp core.first", "md # First\n> What it is.", DOUBLE, "md Twice three.", "double(3)"),
    notebook("core/10_second", "#| default_exp core.second", "md # Second\n> What it is.", "#| export\nfrom fromage.core.first import double\nfour = double(2)"),
    notebook("train", "md # Train", "steps: int = 3  # optimiser steps", tags=("parameters",)),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule) -> None:
    found = rule(NOTEBOOKS)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_accepts_what_is_right(rule) -> None:
    assert rule(GOOD) == []


VIOLATIONS = {
    "another module name": (rules.names, notebook("core/20_third", "#| default_exp core.fourth")),
    "a number given twice": (rules.names, notebook("core/10_third", "#| default_exp core.third")),
    "a module outside of the rooms": (rules.names, notebook("20_third", "#| default_exp third")),
    "an unknown room": (rules.names, notebook("cellar/20_third", "#| default_exp cellar.third")),
    "another room's name": (rules.names, notebook("mini/20_third", "#| default_exp core.third")),
    "a run in a room": (rules.names, notebook("core/probe", "x = 1")),
    "a run that exports": (rules.names, notebook("eval", "#| default_exp eval", "#| export\nx = 1")),
    "no default_exp": (rules.openings, notebook("core/20_third", "import os", "md # Third\n> It is.")),
    "no sentence": (rules.openings, notebook("core/20_third", "#| default_exp core.third", "md # Third\nText.")),
    "a run without a title": (rules.openings, notebook("eval", "import os")),
    "an import upwards": (rules.imports, notebook("core/05_low", "#| default_exp core.low", "from fromage.core.second import x")),
    "an import of a later room": (rules.imports, notebook("core/20_third", "#| default_exp core.third", "from fromage.chat.fourth import x"),
                                 notebook("chat/00_fourth", "#| default_exp chat.fourth")),
    "an import of a room": (rules.imports, notebook("core/20_third", "#| default_exp core.third", "from fromage.core import first")),
    "an import of itself": (rules.imports, notebook("core/20_third", "#| default_exp core.third", "import fromage.core.third")),
    "an import in a function": (rules.imports, notebook("core/05_low", "#| default_exp core.low", "def f():\n import fromage.core.second")),
    "an unknown module": (rules.imports, notebook("eval", "from fromage.core.nothing import x")),
    "a star": (rules.imports, notebook("eval", "from fromage.core.first import *")),
    "a relative import": (rules.imports, notebook("core/20_third", "#| default_exp core.third", "from .first import double")),
    "an import for an example": (rules.needs, notebook("core/20_third", "#| export\nimport json", "json.dumps(1)")),
    "a long cell": (rules.cell_sizes, notebook("core/20_third", "#| export\n" + "x = 1\n" * 49)),
    "a long line": (rules.cell_sizes, notebook("core/20_third", "x = '" + "x" * 130 + "'")),
    "little prose": (rules.prose, notebook("core/20_third", "md # Third", *["x = 1"] * 4)),
    "no parameters": (rules.parameters, notebook("eval", "steps: int = 3  # steps")),
    "parameters in a library": (rules.parameters, notebook("core/20_third", "steps: int = 3  # steps", tags=("parameters",))),
    "no annotation": (rules.parameters, notebook("eval", "steps = 3  # steps", tags=("parameters",))),
    "no literal": (rules.parameters, notebook("eval", "steps: int = 3 * x  # steps", tags=("parameters",))),
    "two lines": (rules.parameters, notebook("eval", "steps: list = [1,  # one\n 2]  # two", tags=("parameters",))),
    "no comment": (rules.parameters, notebook("eval", "steps: int = 3", tags=("parameters",))),
    "an equals sign in a comment": (rules.parameters, notebook("eval", "steps: int = 3  # 3 = few", tags=("parameters",))),
    "a statement": (rules.parameters, notebook("eval", "print(1)  # print", tags=("parameters",))),
    "a function in a run": (rules.definitions, notebook("eval", "def f(): pass")),
    "a class in a run": (rules.definitions, notebook("eval", "if True:\n class A: pass")),
    "no id": (rules.identifiers, Notebook("eval", (Cell("eval, cell 0", "code", "x = 1"),))),
    "an id given twice": (rules.identifiers, Notebook("eval", (Cell("a", "code", "1", (), "i"),) * 2)),
    "a copied cell": (rules.duplicates, notebook("eval", "import re\n" + DOUBLE.removeprefix("#| export\n").replace("* x", "*x"))),
    "a name with two meanings": (rules.meanings, notebook("mini/20_third", "#| export\ndouble, half = 2, 0.5")),
    "a name with two meanings and a type": (rules.meanings, notebook("mini/20_third", "#| export\ndouble: int = 2")),
    "no docstring": (rules.documentation, notebook("core/20_third", "#| export\ndef f(x: int) -> int:\n    return x")),
    "no type": (rules.documentation, notebook("core/20_third", "#| export\ndef f(x) -> int:\n    '''f.'''")),
    "no type of **options": (rules.documentation, notebook("core/20_third", "#| export\ndef f(**options) -> int:\n    '''f.'''")),
    "no example": (rules.examples, USED, notebook("core/20_third", "#| default_exp core.third", TREBLE, "from fromage.core.third import treble")),
    "an example before": (rules.examples, USED, notebook("core/20_third", "#| default_exp core.third", "treble(1)", TREBLE)),
    "a hidden example": (rules.examples, USED, notebook("core/20_third", "#| default_exp core.third", TREBLE, "#| hide\ntreble(1)")),
    "an example that fails": (rules.examples, USED, notebook("core/20_third", "#| default_exp core.third", TREBLE,
                                                             "test_fail(lambda: treble(''))")),
    "an example in another notebook": (rules.examples, notebook("core/20_third", "#| default_exp core.third", TREBLE),
                                       notebook("train", "from fromage.core.third import treble", "treble(1)")),
    "nothing but refusals": (rules.refusals, notebook("core/20_third", "x = 3", "for y in 'ab':\n    test_fail(lambda: treble(y))")),
    "no result": (rules.documentation, notebook("core/20_third", "#| export\nclass A:\n '''A.'''\n def f(self):\n  '''f.'''")),
}


def test_refusals_beside_an_example_may_be_seen() -> None:
    beside = "test_fail(lambda: treble(''))\n"
    cells = [f"{beside}test_eq(treble(1), 3)", f"{beside}treble(1)", f"#| hide\n{beside}", f"{beside}print(treble(1))"]
    assert rules.refusals([notebook("core/20_third", *cells)]) == []
    assert len(rules.examples([notebook("vist/20_third", "#| default_exp core.third", TREBLE), USED], ())) == 1


@pytest.mark.parametrize("rule, bad", [(rule, bad) for rule, *bad in VIOLATIONS.values()], ids=VIOLATIONS.keys())
def test_rule_finds_what_is_wrong(rule, bad: list[Notebook]) -> None:
    assert len(rule([*GOOD, *bad])) == 1


def test_rooms_stand_on_each_other() -> None:
    """The exported modules too: no arrow backwards, no circle."""
    arrows = count_arrows()
    assert {room for ends in arrows for room in ends} == set(rules.ROOMS) and place_rooms(arrows)["core"] == 0
    assert [ends for ends in arrows if rules.ROOMS.index(ends[0]) <= rules.ROOMS.index(ends[1])] == []


def test_every_notebook_is_read(tmp_path: Path) -> None:
    """Those in rooms too: rules that see no library hold for nothing."""
    there = [path for path in ROOT.glob("nbs/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts]
    assert len(NOTEBOOKS) == len(there) and len(rules.library(NOTEBOOKS)) >= 70 and len(rules.runs(NOTEBOOKS)) >= 12
    assert {item.room for item in rules.library(NOTEBOOKS)} == set(rules.ROOMS)
    for name in ("core/00_first", "train"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(), tmp_path / f"{name}.ipynb")
    assert [item.name for item in rules.read_notebooks(tmp_path)] == ["core/00_first", "train"]


def test_every_module_has_one_notebook() -> None:
    assert rules.orphans(NOTEBOOKS, rules.modules()) == []
    assert rules.orphans(GOOD, ["__init__", "_modidx", "core.__init__", "core.first", "core.second"]) == []
    assert rules.orphans(GOOD, ["core.first", "core.second", "core.old"]) == ["fromage/core/old.py has no notebook"]
    assert rules.orphans(GOOD, ["core.first"]) == ["core.second is not exported"]
    twice = [*GOOD, notebook("core/11_second", "#| default_exp core.second")]
    assert rules.orphans(twice, ["core.first", "core.second"]) == ["2 notebooks export core.second"]


def stored(notebooks: list[Path]) -> dict[str, int]:
    """The size of the outputs of every cell that has some, by its place."""
    cells = [(f"{path.stem}, {cell.id}", cell.get("outputs")) for path in notebooks for cell in nbformat.read(path, nbformat.NO_CONVERT).cells]
    return {name: len(json.dumps(outputs)) for name, outputs in cells if outputs}


def test_stored_outputs_are_small() -> None:
    sizes = stored(sorted(ROOT.glob("nbs/**/*.ipynb")))
    assert [name for name, size in sizes.items() if size > 100_000] == [] and sum(sizes.values()) <= 4_000_000


def test_modules_are_small() -> None:
    assert rules.module_sizes({name: (ROOT / "fromage" / name.replace(".", "/")).with_suffix(".py").read_text() for name in rules.modules()
                               if not name.endswith("_modidx")}) == []
    assert rules.module_sizes({"a.py": "\n" * 299, "b.py": "\n" * 300}) == ["b.py: 300 lines"]


def tracked_texts() -> dict[str, str]:
    """The text files of the repository, without what git ignores, by name."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"],
                            capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git repository")
    endings = {".py", ".ipynb", ".md", ".ini", ".toml", ".yml", ".json", ""}
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8", errors="replace")
            for path in paths if path.suffix in endings and path.is_file() and "data" not in path.relative_to(ROOT).parts}


def test_nothing_belongs_to_one_machine() -> None:
    assert rules.portability(tracked_texts()) == []
    bad = ["open('/" + "home/me/data')", "see https://" + "pypi." + "org/simple", "pickle." + "load(file)", "torch." + "load(x)"]
    assert [len(rules.portability({"a.py": text})) for text in bad] == [1] * 4
    assert rules.portability({"a.py": "open('data/home/x'); /path/to/tmp/y", "fromage/model/checkpoint.py": bad[2]}) == []


def settings() -> dict[str, str]:
    """settings.ini."""
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


EXTRAS = [key for key in settings() if key.endswith("_requirements") and key != "dev_requirements"]


def declared(*keys: str) -> set[str]:
    """Names of the distributions under these keys of settings.ini."""
    return {canonicalize_name(Requirement(text).name) for key in keys for text in settings()[key].split()}


def test_settings_are_the_one_home_of_dependencies() -> None:
    named = {"nbdev", "pytest"}  # an entry point and a section of that name
    everything = declared("requirements", "dev_requirements") - named
    for name in ("environment.yml", "setup.py", "pyproject.toml", ".ci/run"):
        words = set((ROOT / name).read_text().replace('"', " ").replace("'", " ").replace("=", " ").split())
        assert not {canonicalize_name(word) for word in words} & everything, name
        assert settings()["version"] not in words, name
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"] == [f"python={settings()['min_python']}", "pip", {"pip": ["-e .[dev]"]}]
    assert environment["channels"] == ["conda-forge"]


def third_party(exported: bool) -> set[str]:
    """Distributions that exported cells, or all others, import; those of an extra that is not installed by its name."""
    modules = set()
    for cell in (cell for item in NOTEBOOKS for cell in item.code if cell.exported == exported):
        for node in ast.walk(cell.tree):
            modules |= {name.name.split(".")[0] for name in node.names} if isinstance(node, ast.Import) else set()
            modules |= {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
    homes = packages_distributions() | {name.split("-")[0]: [name] for name in declared(*EXTRAS)}
    unknown = modules - set(stdlib_module_names) - {"fromage"} - set(homes)
    assert not unknown, f"imported but not installed: {unknown}"
    return {canonicalize_name(homes[name][0]) for name in modules - set(stdlib_module_names) - {"fromage"}}


def test_what_is_imported_is_declared() -> None:
    assert third_party(exported=True) <= declared("requirements", *EXTRAS)
    assert third_party(exported=False) <= declared("requirements", "dev_requirements", *EXTRAS)


def test_what_is_declared_is_used() -> None:
    commands = {"papermill", "ipykernel"}  # run as commands
    assert declared("requirements") - commands <= third_party(exported=True) | third_party(exported=False)
