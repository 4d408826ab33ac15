"""The documentation's figures and settings are the ones in the files beside it."""

import ast
import inspect
import json
from pathlib import Path

import pytest

from benchmarks.docs_pages import methods as attribution_pages
from benchmarks.docs_pages import tables
from llm_influence.attribution.methods import METHODS
from llm_influence.config.model import ADAPTER_OPTIONS
from llm_influence.config.run import RunConfig
from llm_influence.faithfulness.metrics import METRICS

BENCHMARKS = Path("docs/benchmarks")
FORMAT = {"name", "command", "protocol", "hardware", "versions", "seeds", "rows", "figures"}


def test_every_table_stands_on_a_page_as_it_was_measured():
    found = []
    for path in tables.pages():
        page = path.read_text(encoding="utf-8")
        assert tables.filled(page) == page, f"{path}: run python -m benchmarks.docs_pages.tables"
        found += tables.markers(page)
    assert set(found) == set(tables.TABLES)
    assert tables.OVERVIEW.read_text(encoding="utf-8") == tables.overview()


def test_the_table_of_adapters_has_every_kind_and_that_of_metrics_every_metric():
    pages = "".join(path.read_text(encoding="utf-8") for path in tables.pages())
    assert all(f"| `{kind}` |" in pages for kind in ADAPTER_OPTIONS)
    assert all(f"`{name}`" in pages for options in ADAPTER_OPTIONS.values() for name in options)
    assert all(f"| `{name}` " in pages for name in METRICS)


def test_every_method_has_its_page_as_the_registry_describes_it():
    written = {p.name: p.read_text(encoding="utf-8") for p in attribution_pages.FOLDER.glob("*.md")}
    assert written == attribution_pages.pages(), "run python -m benchmarks.docs_pages.methods"


@pytest.mark.parametrize("spec", METHODS.values(), ids=lambda spec: spec.name)
def test_a_method_explains_every_option_in_its_docstring(spec):
    _, meanings = attribution_pages.read_docstring(inspect.getdoc(spec))
    assert meanings.keys() >= spec.defaults().keys()


def test_a_page_keeps_the_text_and_joins_lines_of_an_option():
    text, meanings = attribution_pages.read_docstring(
        "Short.\n\nLong ``x``.\n\nArgs:\n    task: What.\n    steps: How many\n        points: all."
        "\n\nRaises:\n    ValueError: Never."
    )
    assert text == "Short.\n\nLong `x`."
    assert meanings == {"task": "What.", "steps": "How many points: all."}


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.json")), ids=lambda path: path.stem)
def test_benchmark_files_have_the_common_format(path):
    benchmark = json.loads(path.read_text(encoding="utf-8"))
    assert benchmark.keys() >= FORMAT
    assert all(isinstance(value, int | float | str) for value in benchmark["figures"].values())


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path):
    assert RunConfig.load(path).output.startswith("runs/")


@pytest.mark.slow
def test_the_notebook_runs_without_a_network_and_finds_the_process_of_its_log(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run_notebook = pytest.importorskip("benchmarks.docs_pages.notebook")  # nbclient

    notebook = run_notebook.run(Path("docs/tutorials/influence.ipynb"))

    texts = [out.data["text/plain"] for cell in notebook.cells for out in _results(cell)]
    hits = ast.literal_eval(next(text for text in texts if text.startswith("{'leave_one_out'")))
    assert hits["leave_one_out"] > hits["recency"] + 0.15 > hits["random"]


def _results(cell):
    return [o for o in cell.get("outputs", []) if o.output_type == "execute_result"]
