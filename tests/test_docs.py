"""The documentation's figures and settings are the ones in the files beside it."""

import ast
import inspect
import json
from pathlib import Path

import pytest

from benchmarks.docs_pages import faithfulness as faithfulness_page
from benchmarks.docs_pages import methods as attribution_pages
from benchmarks.docs_pages import tables as benchmark_tables
from llm_influence.attribution.methods import METHODS
from llm_influence.config.model import ADAPTER_OPTIONS
from llm_influence.config.run import RunConfig
from llm_influence.faithfulness.metrics import METRICS

BENCHMARKS = Path("docs/benchmarks")
FORMAT = {"name", "command", "protocol", "hardware", "versions", "seeds", "rows", "figures"}


def test_tables_say_what_the_benchmark_files_say():
    front = Path("README.md").read_text(encoding="utf-8")
    assert "<!-- demo -->" in front
    assert benchmark_tables.front_page(front, BENCHMARKS) == front
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert benchmark_tables.overview(BENCHMARKS) == page


def test_the_page_of_adapters_names_every_kind_and_option_and_its_table_is_the_measured_one():
    page = Path("docs/how-to/choose_an_adapter.md").read_text(encoding="utf-8")
    assert "<!-- adapters -->" in page
    assert benchmark_tables.adapters_page(page, BENCHMARKS) == page
    for kind, options in ADAPTER_OPTIONS.items():
        assert f"| `{kind}` |" in page
        assert all(f"`{option}`" in page for option in options)


def test_pages_hold_the_measured_tables():
    page = Path("docs/how-to/training_options.md").read_text(encoding="utf-8")
    assert "<!-- speed -->" in page
    assert "<!-- ablations -->" in page
    assert benchmark_tables.training_page(page, BENCHMARKS) == page
    page = Path("docs/how-to/ways_of_learning.md").read_text(encoding="utf-8")
    assert "<!-- learning -->" in page
    assert "<!-- low labels -->" in page
    assert benchmark_tables.learning_page(page, BENCHMARKS) == page
    page = Path("docs/concepts/influence.md").read_text(encoding="utf-8")
    assert "<!-- shapley estimators -->" in page
    assert benchmark_tables.attribution_page(page, BENCHMARKS) == page
    page = Path("docs/how-to/synthetic_truth.md").read_text(encoding="utf-8")
    assert "<!-- law recovered -->" in page
    assert benchmark_tables.planted_page(page, BENCHMARKS) == page


def test_the_page_of_faithfulness_has_every_metric_as_it_is_and_as_measured():
    page = Path("docs/how-to/measure_faithfulness.md").read_text(encoding="utf-8")
    assert "<!-- metrics -->" in page
    assert "<!-- measured -->" in page
    assert faithfulness_page.faithfulness_page(page, BENCHMARKS) == page
    assert all(f"| `{name}` " in page for name in METRICS)


def test_every_method_has_its_page_as_the_registry_describes_it():
    written = {p.name: p.read_text(encoding="utf-8") for p in attribution_pages.FOLDER.glob("*.md")}
    assert written == attribution_pages.pages(), "run python -m benchmarks.docs_pages.methods"


@pytest.mark.parametrize("spec", METHODS.values(), ids=lambda spec: spec.name)
def test_a_method_explains_every_option_in_its_docstring(spec):
    _, meanings = attribution_pages.read_docstring(inspect.getdoc(spec.run))
    assert meanings.keys() >= spec.options.keys()


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


def test_the_notebook_runs_without_a_network_and_finds_the_law_of_its_log(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run_notebook = pytest.importorskip("run_notebook")  # nbclient

    notebook = run_notebook.run(Path("docs/tutorials/influence.ipynb"))

    texts = [out.data["text/plain"] for cell in notebook.cells for out in _results(cell)]
    hits = ast.literal_eval(next(text for text in texts if text.startswith("{'leave_one_out'")))
    assert hits["leave_one_out"] > hits["recency"] + 0.15 > hits["random"]


def _results(cell):
    return [o for o in cell.get("outputs", []) if o.output_type == "execute_result"]
