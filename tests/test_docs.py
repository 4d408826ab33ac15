"""The documentation's figures and settings are the ones in the files beside it."""

import json
import sys
from pathlib import Path

import pytest

from llm_influence.config import ADAPTER_OPTIONS, RunConfig
from llm_influence.faithfulness.metrics import METRICS

sys.path.append("scripts")
import benchmark_tables
import faithfulness_page

BENCHMARKS = Path("docs/benchmarks")
FORMAT = {"name", "command", "protocol", "hardware", "versions", "seeds", "rows", "figures"}


def test_tables_say_what_the_benchmark_files_say():
    front = Path("README.md").read_text(encoding="utf-8")
    assert "<!-- demo -->" in front
    assert benchmark_tables.front_page(front, BENCHMARKS) == front
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert benchmark_tables.overview(BENCHMARKS) == page


def test_the_page_of_adapters_names_every_kind_and_option_and_its_table_is_the_measured_one():
    page = Path("docs/adapters.md").read_text(encoding="utf-8")
    assert "<!-- adapters -->" in page
    assert benchmark_tables.adapters_page(page, BENCHMARKS) == page
    for kind, options in ADAPTER_OPTIONS.items():
        assert f"| `{kind}` |" in page
        assert all(f"`{option}`" in page for option in options)


def test_the_page_of_training_holds_the_measured_tables():
    page = Path("docs/training.md").read_text(encoding="utf-8")
    assert "<!-- speed -->" in page
    assert "<!-- ablations -->" in page
    assert benchmark_tables.training_page(page, BENCHMARKS) == page


def test_the_page_of_faithfulness_has_every_metric_as_it_is_and_as_measured():
    page = Path("docs/faithfulness.md").read_text(encoding="utf-8")
    assert "<!-- metrics -->" in page
    assert "<!-- measured -->" in page
    assert faithfulness_page.faithfulness_page(page, BENCHMARKS) == page
    assert all(f"| `{name}` " in page for name in METRICS)


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.json")), ids=lambda path: path.stem)
def test_benchmark_files_have_the_common_format(path):
    benchmark = json.loads(path.read_text(encoding="utf-8"))
    assert benchmark.keys() >= FORMAT
    assert all(isinstance(value, int | float | str) for value in benchmark["figures"].values())


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path):
    assert RunConfig.load(path).output.startswith("runs/")
