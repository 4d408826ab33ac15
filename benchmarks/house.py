"""The size and the order of the code, counted: docs/benchmarks/house.json.

    python -m benchmarks.house [--parts counts traced import]

``counts`` reads the syntax trees of the package, ``traced`` counts the own files that an
explanation and the way from CSV to report enter on a tiny model, ``import`` times
``import llm_influence`` in a fresh process.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import ROOT, Row, arguments, row_of, started, write_benchmark

PACKAGE = "llm_influence"
FOLDERS = ("llm_influence", "benchmarks", "scripts", "tests", "examples", "docs")
LONG_FUNCTION, LONG_FILE = 60, 400
REPEATS = 5
PARSER = arguments(
    __doc__,
    "house",
    parts={"nargs": "+", "default": ["counts", "traced", "import"], "help": "what is counted"},
)

PROTOCOL = {
    "modules": "files of the package, those named __init__ or __main__ included",
    "names_twice": "file names that occur in more than one room, beside __init__ and __main__",
    "circles": "strongly connected groups of modules; imports inside functions and for types count",
    "imports_in_functions": "imports of own modules inside functions, outside cli/",
    "lines": "all lines of .py files; all Python: package, benchmarks, scripts, tests, examples",
    "deep_imports": "distinct modules below llm_influence that docs/ (pages, notebooks), README "
    "and examples/ import from",
    "entered_files": "files of the package in which a function is entered, by sys.setprofile",
    "explanation": "leave one out of one history by a tiny BERT, model and log being loaded",
    "csv_to_report": "read a CSV, load a model, recommend, explain, write and read Parquet, report",
    "seconds_import": f"import llm_influence in a fresh process, the median of {REPEATS}",
}


# --- syntax trees ------------------------------------------------------------------------------


@dataclass
class Module:
    """What one file of the package holds.

    Attributes:
        name: Dotted, below the package.
        lines: Of the file.
        imports: Own modules that it imports, wherever in the file.
        nested: Own modules imported inside functions.
        long_functions: Name and lines of functions over `LONG_FUNCTION` lines.
    """

    name: str
    lines: int
    imports: set[str] = field(default_factory=set)
    nested: list[str] = field(default_factory=list)
    long_functions: dict[str, int] = field(default_factory=dict)


def read_modules(root: Path) -> dict[str, Module]:
    """All modules of the package by name; a package is named by its folder."""
    paths = {_dotted(path.relative_to(root)): path for path in sorted(root.rglob("*.py"))}
    return {name: _read_module(name, path, set(paths)) for name, path in paths.items()}


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _read_module(name: str, path: Path, known: set[str]) -> Module:
    text = path.read_text(encoding="utf-8")
    tree, module = ast.parse(text), Module(name, text.count("\n"))
    for node in ast.walk(tree):
        module.imports |= set(_imported(node, known)) - {name}
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > LONG_FUNCTION:
                module.long_functions[node.name] = size
            module.nested += [own for inner in ast.walk(node) for own in _imported(inner, known)]
    return module


def _imported(node: ast.AST, known: set[str]) -> Iterator[str]:
    """Own modules that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        full = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if _below(name) in known else node.module for name in full]
    else:
        return
    for name in names:
        if name.startswith(f"{PACKAGE}.") and _below(name) in known:
            yield _below(name)


def _below(name: str) -> str:
    return name.removeprefix(PACKAGE).removeprefix(".")


def circles(modules: dict[str, Module]) -> list[list[str]]:
    """Groups of modules that reach each other: strongly connected components (Tarjan 1972)."""
    place: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        place[name] = lowest[name] = len(place)
        stack.append(name)
        for other in modules[name].imports:
            if other not in place:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], place[other])
        if lowest[name] == place[name]:
            start = stack.index(name)
            groups.append(sorted(stack[start:]))
            del stack[start:]

    for name in modules:
        if name not in place:
            visit(name)
    return [group for group in groups if len(group) > 1]


def rooms_by_file_name(modules: dict[str, Module], root: Path) -> dict[str, list[str]]:
    """File names that occur in several rooms, with the rooms."""
    rooms = defaultdict(list)
    for path in sorted(root.rglob("*.py")):
        if not path.name.startswith("__"):
            rooms[path.stem].append(path.parent.relative_to(root).as_posix())
    return {name: where for name, where in rooms.items() if len(where) > 1}


def deep_imports(root: Path) -> Counter[str]:
    """Modules below the package that docs, README and examples import from."""
    pattern = re.compile(rf"(?:from|import) ({PACKAGE}\.[\w.]+)")
    suffixes = {".md", ".ipynb", ".py"}
    paths = [root / "README.md"]
    paths += [
        p for f in ("docs", "examples") for p in (root / f).rglob("*") if p.suffix in suffixes
    ]
    texts = (path.read_text(encoding="utf-8") for path in paths if path.is_file())
    return Counter(name for text in texts for name in pattern.findall(text))


def count(root: Path) -> tuple[Row, list[Row]]:
    """Figures and rows of what can be read in the files."""
    package = root / PACKAGE
    modules = read_modules(package)
    twice, groups = rooms_by_file_name(modules, package), circles(modules)
    nested = {m.name: m.nested for m in modules.values() if m.nested and m.name[:3] != "cli"}
    long_files = {m.name: m.lines for m in modules.values() if m.lines > LONG_FILE}
    long_functions = {
        f"{m.name}.{name}": lines
        for m in modules.values()
        for name, lines in m.long_functions.items()
    }
    deep = deep_imports(root)
    lines = {folder: _lines(root / folder) for folder in FOLDERS}
    rows = [
        row_of(name, "name that occurs twice", ", ".join(where), len(where))
        for name, where in twice.items()
    ]
    rows += [row_of(group[0], "circle", ", ".join(group), len(group)) for group in groups]
    rows += [
        row_of(name, "imports in functions", ", ".join(own), len(own))
        for name, own in nested.items()
    ]
    for task, values in (
        ("lines of a long file", long_files),
        ("lines of a long function", long_functions),
        ("deep import", deep),
        ("lines of a folder", lines),
    ):
        rows += [row_of(name, task, "count", value) for name, value in sorted(values.items())]
    figures: Row = {
        "modules": len(modules),
        "names_twice": len(twice),
        "circles": len(groups),
        "modules_in_circles": sum(map(len, groups)),
        "imports_in_functions": sum(map(len, nested.values())),
        "lines_package": lines[PACKAGE],
        "lines_python": sum(lines.values()),
        "deep_imports": len(deep),
        "functions_over_60_lines": len(long_functions),
        "files_over_400_lines": len(long_files),
        "readme_lines": (root / "README.md").read_text(encoding="utf-8").count("\n"),
    }
    return figures, rows


def _lines(folder: Path) -> int:
    return sum(path.read_text(encoding="utf-8").count("\n") for path in folder.rglob("*.py"))


# --- a traced run ------------------------------------------------------------------------------


def entered(work: Callable[[], object], root: Path) -> set[str]:
    """Files of the package in which ``work`` enters a function; imports are not counted."""
    package, files = str(root / PACKAGE), set()

    def watch(frame: object, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name != "<module>" and code.co_filename.startswith(package):
            files.add(Path(code.co_filename).relative_to(package).as_posix())

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return files


def trace(root: Path) -> tuple[Row, list[Row]]:
    """Files entered by one explanation, and from CSV to report, on the tests' tiny BERT."""
    import pyarrow.csv

    from llm_influence import BehaviorLog, Explainer, InfluenceModel, build_report, explain_batch
    from llm_influence.influence.table_files import read_tables
    from llm_influence.report.tables import ReportFacts
    from tests import tiny

    model, log = tiny.tiny_model("bert", "token"), tiny.small_log(users=6)
    history = log[log.user_ids[0].as_py()]
    explainer = Explainer(model, "leave_one_out")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        for table, file in ((tiny.events_table(6), "events"), (tiny.items_table(), "items")):
            pyarrow.csv.write_csv(table, folder / f"{file}.csv")

        def journey() -> None:
            loaded = InfluenceModel.from_pretrained(folder / "model")
            read = BehaviorLog.read(folder / "events.csv", items=folder / "items.csv")
            first = read[read.user_ids[0].as_py()]
            loaded.recommend(first, k=3)
            one = Explainer(loaded, "leave_one_out")
            one.explain(first)
            explain_batch(one, read, folder / "influence", progress=False)
            table = read_tables(folder / "influence")
            build_report(influences=table, facts=ReportFacts("House"), out=folder / "report.html")

        parts = {"explanation": lambda: explainer.explain(history), "csv_to_report": journey}
        files = {part: entered(work, root) for part, work in parts.items()}
    figures: Row = {f"files_{part}": len(found) for part, found in files.items()}
    rows = [row_of(name, part, "entered", 1) for part in files for name in sorted(files[part])]
    return figures, rows


def time_import(root: Path) -> tuple[Row, list[Row]]:
    """Seconds of the import in a fresh process, start of Python left out."""

    def seconds(statement: str) -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True, cwd=root)
        return time.perf_counter() - begun

    seconds(f"import {PACKAGE}")  # compiles what is not compiled yet
    pairs = [(seconds(f"import {PACKAGE}"), seconds("pass")) for _ in range(REPEATS)]
    return {"seconds_import": statistics.median(own - bare for own, bare in pairs)}, []


def main(options: argparse.Namespace) -> None:
    """Count the chosen parts and write the file."""
    parts = {"counts": count, "traced": trace, "import": time_import}
    figures, rows = {}, []
    for name in options.parts:
        some, more = parts[name](ROOT)
        figures, rows = figures | some, rows + more
    write_benchmark(options.output, name="house", protocol=PROTOCOL, rows=rows, figures=figures)


if __name__ == "__main__":
    main(started(PARSER))
