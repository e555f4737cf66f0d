"""The rules of CONTRIBUTING.md as functions: each takes notebooks or texts and returns the violations it finds, as sentences."""

import ast
import io
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
LONGEST_MODULE, LONGEST_CELL, LONGEST_LINE = 300, 50, 130
# The rooms from the ground up: a room imports only rooms before it. CONTRIBUTING.md says what stands in each.
ROOMS = ("core", "mini", "data", "networks", "real", "model", "vist", "visdial", "truth", "knowledge", "released", "scale", "ablation", "study", "chat")
# Beginnings of the names of notebooks whose definitions do not all have an example that is shown.
UNSHOWN = ()


@dataclass(frozen=True)
class Cell:
    """One cell; `name` says where it is in a sentence."""
    name: str
    kind: str
    source: str
    tags: tuple[str, ...] = ()
    identifier: str = ""

    @property
    def exported(self) -> bool:
        """Whether nbdev writes it into a module."""
        return self.kind == "code" and bool(re.search(r"^#\| *(export|exporti|exports)\b", self.source, re.MULTILINE))

    @property
    def hidden(self) -> bool:
        """Whether it runs without being shown."""
        return bool(re.search(r"^#\| *hide\b", self.source, re.MULTILINE))

    @property
    def tree(self) -> ast.Module:
        """Its syntax, without lines that only Jupyter understands."""
        return ast.parse(re.sub(r"^[%!].*$", "", self.source, flags=re.MULTILINE))


@dataclass(frozen=True)
class Notebook:
    """A notebook, by its path below nbs without the ending: a module where it lies in a room, else a run."""
    name: str
    cells: tuple[Cell, ...]

    @property
    def room(self) -> str | None:
        """The sub-package that it belongs to, None for a run."""
        return self.name.rpartition("/")[0] or None

    @property
    def short(self) -> str:
        """Its name without the room."""
        return self.name.rpartition("/")[2]

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands in the order of imports: its room's place, then its number."""
        return (ROOMS.index(self.room) if self.room in ROOMS else len(ROOMS), self.number or 0)

    @property
    def number(self) -> int | None:
        """The number that orders the imports of a room, None for a run."""
        match = re.match(r"(\d+)_", self.short)
        return int(match[1]) if match else None

    @property
    def module(self) -> str | None:
        """What its `default_exp` says."""
        match = re.search(r"^#\| *default_exp +(\S+)", "\n".join(cell.source for cell in self.code), re.MULTILINE)
        return match[1] if match else None

    @property
    def code(self) -> list[Cell]:
        """Its code cells."""
        return [cell for cell in self.cells if cell.kind == "code"]


def read_notebook(path: Path, folder: Path) -> Notebook:
    """Reads one notebook of a folder, at any depth."""
    node = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    name = path.relative_to(folder).with_suffix("").as_posix()
    return Notebook(name, tuple(
        Cell(f"{name}, cell {place}", cell.cell_type, cell.source, tuple(cell.metadata.get("tags", ())),
             cell.get("id", "")) for place, cell in enumerate(node.cells)))


def read_notebooks(folder: Path = ROOT / "nbs") -> list[Notebook]:
    """Reads all notebooks of a folder and of those below it, in the order of their names; checkpoints of Jupyter aside."""
    paths = sorted(path for path in folder.rglob("*.ipynb") if not any(part[0] in "._" for part in path.relative_to(folder).parts))
    return [read_notebook(path, folder) for path in paths]


def modules(folder: Path = ROOT / "fromage") -> list[str]:
    """The dotted names of all modules below a folder."""
    return sorted(".".join(path.relative_to(folder).with_suffix("").parts) for path in folder.rglob("*.py"))


def library(notebooks: Iterable[Notebook]) -> list[Notebook]:
    """Those that are modules."""
    return [notebook for notebook in notebooks if notebook.number is not None]


def runs(notebooks: Iterable[Notebook]) -> list[Notebook]:
    """Those that papermill executes."""
    return [notebook for notebook in notebooks if notebook.number is None]


def names(notebooks: Sequence[Notebook]) -> list[str]:
    """A library notebook is `room/NN_noun` and exports `room.noun`; a run is a verb at the top; a room's numbers are unique."""
    found = []
    for notebook in library(notebooks):
        if not re.fullmatch(r"\d\d_[a-z][a-z0-9_]*", notebook.short) or notebook.module != f"{notebook.room}.{notebook.short[3:]}":
            found.append(f"{notebook.name}: exports {notebook.module!r}")
        elif notebook.room not in ROOMS:
            found.append(f"{notebook.name}: {notebook.room} is no room")
    for notebook in runs(notebooks):
        exports = notebook.module or any(cell.exported for cell in notebook.code)
        if exports or not re.fullmatch(r"[a-z][a-z0-9_]*", notebook.name):
            found.append(f"{notebook.name}: a run exports nothing and is named by a verb")
    numbers = Counter((notebook.room, notebook.number) for notebook in library(notebooks))
    return found + [f"{room}: number {number:02} is given {count} times" for (room, number), count in numbers.items() if count > 1]


def openings(notebooks: Sequence[Notebook]) -> list[str]:
    """The first cells: `#| default_exp` alone (library), then a title; a library's title is followed by `> a sentence`."""
    found = []
    for notebook in notebooks:
        first, *rest = notebook.cells
        if notebook.number is not None and not re.fullmatch(r"#\| default_exp \w+\.\w+", first.source.strip()):
            found.append(f"{first.name}: a library notebook begins with `#| default_exp name` and nothing else")
        title = rest[0] if notebook.number is not None else first
        pattern = r"# .+\n+> [^\n]+[.?!](\n|$)" if notebook.number is not None else r"# .+"
        if title.kind != "markdown" or not re.match(pattern, title.source):
            found.append(f"{title.name}: no title, or no `> sentence` below it")
    return found


def imports(notebooks: Sequence[Notebook]) -> list[str]:
    """A module imports only rooms before its own and smaller numbers of its own, never relatively, never a star or a room."""
    places = {notebook.module: notebook.place for notebook in library(notebooks)}
    found = []
    for notebook in notebooks:
        for cell in notebook.code:
            for node in ast.walk(cell.tree):
                if isinstance(node, ast.ImportFrom) and (node.level or any(item.name == "*" for item in node.names)):
                    found.append(f"{cell.name}: relative or star import of {node.module}")
                    continue
                for name in imported_modules(node):
                    if name not in places:
                        found.append(f"{cell.name}: fromage.{name} has no notebook")
                    elif notebook.number is not None and places[name] >= notebook.place:
                        found.append(f"{cell.name}: imports fromage.{name}, which does not stand before it")
    return found


def imported_modules(node: ast.AST) -> list[str]:
    """The modules of this package that an import statement names, as `room.module`; nbdev exports `from a room` wrongly."""
    if isinstance(node, ast.Import):
        paths = [item.name for item in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module == "fromage":
        paths = [f"fromage.{item.name}" for item in node.names if item.name != "__version__"]
    else:
        paths = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return [path.removeprefix("fromage.") for path in paths if path.startswith("fromage.")]


def needs(notebooks: Sequence[Notebook]) -> list[str]:
    """What exported cells import is used in exported cells: a module holds nothing that only its notebook's examples need."""
    found = []
    for notebook in notebooks:
        nodes = [(cell, node) for cell in notebook.code if cell.exported for node in ast.walk(cell.tree)]
        used = {node.id for _, node in nodes if isinstance(node, ast.Name)}
        for cell, node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [(item.asname or item.name).split(".")[0] for item in node.names]
                found += [f"{cell.name}: imports {name}, which no exported cell uses" for name in names if name not in used]
    return found


def cell_sizes(notebooks: Sequence[Notebook]) -> list[str]:
    """An exported cell stays under 50 lines, a line within 130 characters."""
    found = []
    for cell in (cell for notebook in notebooks for cell in notebook.code):
        lines = cell.source.splitlines()
        if cell.exported and len(lines) >= LONGEST_CELL:
            found.append(f"{cell.name}: {len(lines)} lines in an exported cell")
        found += [f"{cell.name}: a line of {len(line)} characters: {line.strip()[:40]}" for line in lines
                  if len(line) > LONGEST_LINE]
    return found


def module_sizes(texts: dict[str, str]) -> list[str]:
    """A module stays under 300 lines."""
    return [f"{name}: {len(text.splitlines())} lines" for name, text in texts.items()
            if len(text.splitlines()) >= LONGEST_MODULE]


def prose(notebooks: Sequence[Notebook]) -> list[str]:
    """A library notebook has at least one cell of prose for three of code."""
    return [f"{notebook.name}: {len(notebook.code)} of {len(notebook.cells)} cells are code" for notebook in library(notebooks)
            if len(notebook.code) > 3 * (len(notebook.cells) - len(notebook.code))]


def parameters(notebooks: Sequence[Notebook]) -> list[str]:
    """A run has exactly one cell tagged `parameters`: `name: type = literal  # comment`, one a line; a library has none."""
    found = []
    for notebook in notebooks:
        tagged = [cell for cell in notebook.code if "parameters" in cell.tags]
        if len(tagged) != (notebook.number is None):
            found.append(f"{notebook.name}: {len(tagged)} cells tagged `parameters`")
        for cell in tagged:
            found += [f"{cell.name}: {problem}" for problem in parameter_lines(cell.source)]
    return found


def parameter_lines(source: str) -> list[str]:
    """What is wrong in a cell of parameters."""
    found, lines = [], source.splitlines()
    for node in ast.parse(source).body:
        line = lines[node.lineno - 1]
        try:
            assert isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
            ast.literal_eval(node.value)
        except (AssertionError, ValueError):
            found.append(f"not an annotated literal: {line}")
        if node.lineno != node.end_lineno:
            found.append(f"more than one line: {line}")
    for line in filter(str.strip, lines):
        try:
            comments = [token.string for token in tokenize.generate_tokens(io.StringIO(line).readline)
                        if token.type == tokenize.COMMENT]
        except tokenize.TokenError:
            continue
        if not comments or "=" in comments[0] or line.lstrip().startswith("#"):
            found.append(f"no comment behind the value, or one with an equals sign: {line}")
    return found


def definitions(notebooks: Sequence[Notebook]) -> list[str]:
    """A run defines nothing: what is worth a name belongs into the library."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [f"{cell.name}: defines {node.name}" for notebook in runs(notebooks) for cell in notebook.code
            for node in ast.walk(cell.tree) if isinstance(node, kinds)]


def identifiers(notebooks: Sequence[Notebook]) -> list[str]:
    """Every cell has an id of its own; export writes the ids into the modules."""
    found = []
    for notebook in notebooks:
        counts = Counter(cell.identifier for cell in notebook.cells)
        found += [f"{notebook.name}: {count} cells with the id {identifier!r}" for identifier, count in counts.items()
                  if not identifier or count > 1]
    return found


def duplicates(notebooks: Sequence[Notebook]) -> list[str]:
    """No code cell stands in two notebooks (imports and cells of one or two lines aside)."""
    places = defaultdict(set)
    for notebook in notebooks:
        for cell in notebook.code:
            body = [node for node in cell.tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
            text = "\n".join(map(ast.unparse, body))
            if len(text.splitlines()) > 2:
                places[text].add(cell.name)
    return [f"the same code in {' and '.join(sorted(cells))}" for cells in places.values()
            if len({name.split(",")[0] for name in cells}) > 1]


def defined_names(tree: ast.Module) -> set[str]:
    """The names that a module's code binds at its top level: functions, classes, constants."""
    bound = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    targets = [target for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))
               for target in (node.targets if isinstance(node, ast.Assign) else [node.target])]
    return bound | {name.id for target in targets for name in ast.walk(target)
                    if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}


def meanings(notebooks: Sequence[Notebook]) -> list[str]:
    """A name that is exported has one meaning in the whole library; `main` is a command's, by custom."""
    homes = defaultdict(set)
    for notebook in library(notebooks):
        for cell in notebook.code:
            for name in defined_names(cell.tree) if cell.exported else ():
                homes[name].add(notebook.name)
    return [f"{name} is defined in {' and '.join(sorted(places))}" for name, places in homes.items()
            if len(places) > 1 and name != "main" and not name.startswith("_")]


def shown_names(tree: ast.AST) -> set[str]:
    """The names that a cell uses, other than to import them or in a call that must fail."""
    if isinstance(tree, (ast.Import, ast.ImportFrom)) or is_refusal(tree):
        return set()
    own = {tree.id} if isinstance(tree, ast.Name) else {tree.attr} if isinstance(tree, ast.Attribute) else set()
    return own.union(*map(shown_names, ast.iter_child_nodes(tree)))


def is_refusal(node: ast.AST) -> bool:
    """Whether a node is `test_fail(...)`."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "test_fail"


def imported_names(notebooks: Iterable[Notebook]) -> dict[str, set[str]]:
    """Module (`room.name`) -> the names that notebooks import from it."""
    found = defaultdict(set)
    for cell in (cell for notebook in notebooks for cell in notebook.code):
        for node in ast.walk(cell.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fromage."):
                found[node.module.removeprefix("fromage.")] |= {item.name for item in node.names}
    return found


def examples(notebooks: Sequence[Notebook], unshown: tuple[str, ...] = UNSHOWN) -> list[str]:
    """A definition that another notebook imports is used in a later cell of its own that is shown: neither exported nor hidden."""
    found, imported = [], imported_names(notebooks)
    for notebook in library(notebooks):
        shown, lacking = set(), []
        for cell in reversed(notebook.code):
            if not cell.exported:
                shown |= set() if cell.hidden else shown_names(cell.tree)
                continue
            defined = {node.name for node in cell.tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))} - {"main"}
            lacking += sorted(defined & imported[notebook.module] - shown)
        if lacking and not notebook.name.startswith(unshown):
            found.append(f"{notebook.name}: no example is shown of {', '.join(lacking)}")
    return found


def refusals(notebooks: Sequence[Notebook], unshown: tuple[str, ...] = UNSHOWN) -> list[str]:
    """A cell that does nothing but try what must fail stands behind `#| hide`."""
    found = []
    for notebook in library(notebooks):
        for cell in notebook.code if not notebook.name.startswith(unshown) else ():
            nodes = [*ast.walk(cell.tree)]
            tells = any(isinstance(node, ast.Assert) or isinstance(node, ast.Name) and node.id in ("print", "test_eq", "test_close")
                        for node in nodes)
            last = cell.tree.body[-1] if cell.tree.body else None
            shows = isinstance(last, ast.Expr) and not is_refusal(last.value)
            if any(map(is_refusal, nodes)) and not (tells or shows or cell.hidden or cell.exported):
                found.append(f"{cell.name}: nothing but refusals; put `#| hide` on its first line")
    return found


def documentation(notebooks: Sequence[Notebook]) -> list[str]:
    """Every public exported function, method and class has a docstring, every argument and result a type."""
    return [f"{cell.name}: {problem}" for notebook in library(notebooks) for cell in notebook.code if cell.exported
            for problem in undocumented(cell.tree)]


def undocumented(tree: ast.AST) -> list[str]:
    """Public definitions without docstring or types."""
    found = []
    for node in getattr(tree, "body", ()):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found += [] if ast.get_docstring(node) else [f"class {node.name} has no docstring"]
            found += undocumented(node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            given = node.args
            arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
            untyped = [item.arg for item in arguments if item.annotation is None and item.arg not in ("self", "cls")]
            found += [] if ast.get_docstring(node) else [f"{node.name} has no docstring"]
            found += [f"{node.name}: no type for {', '.join(untyped)}"] if untyped else []
            found += [f"{node.name}: no type for its result"] if node.returns is None else []
    return found


def orphans(notebooks: Sequence[Notebook], modules: Iterable[str]) -> list[str]:
    """Every module has its notebook and every library notebook its module; no two notebooks share one."""
    claimed = Counter(notebook.module for notebook in notebooks if notebook.module)
    modules = {name for name in modules if name.rpartition(".")[2] not in ("__init__", "_modidx")}
    return ([f"fromage/{name.replace('.', '/')}.py has no notebook" for name in sorted(modules - set(claimed))]
            + [f"{name} is not exported" for name in sorted(set(claimed) - modules)]
            + [f"{count} notebooks export {name}" for name, count in claimed.items() if count > 1])


MACHINE_PATH = re.compile("(?<![\\w.:/~$}])/" + "(root|home|Users|work|mnt|opt|tmp)" + "/[\\w.]")
REGISTRY = re.compile("|".join(["pypi" + r"\.org", "python" + r"hosted\.org", "anaconda" + r"\.org", "extra-" + "index-url"]))
UNSAFE = re.compile(r"\b(pickle\.loads?|Unpickler|torch\.load|allow_pickle=True|trust_remote_code=True)\b")
IMPORTERS = {"nbs/model/10_checkpoint.ipynb", "fromage/model/checkpoint.py", "tests/house_rules.py"}


def portability(texts: dict[str, str]) -> list[str]:
    """No path of one machine, no host of a package registry; loading of pickles only where the importer guards it."""
    found = []
    for name, text in texts.items():
        for pattern, exempt in ((MACHINE_PATH, set()), (REGISTRY, set()), (UNSAFE, IMPORTERS)):
            if name not in exempt:
                found += [f"{name}: {match[0]}" for match in pattern.finditer(text)]
    return found
