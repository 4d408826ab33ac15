"""Files of an analysis: the same numbers everywhere."""

import csv
import json

import numpy as np

from llm_influence.analysis.output import Analysis, Table, aligned, new_figure, to_csv
from llm_influence.utils import with_formula, without_formula

ROWS = [
    {"factor": "gap", "importance": np.float64(0.25), "matters": True, "p": 0.0},
    {"factor": "hour", "importance": float("nan"), "matters": np.bool_(False), "p": -0.01},
]


def test_json_csv_and_figures_are_written_and_the_same_again(tmp_path):
    def analysis():
        figure = new_figure(3, 2)
        figure.subplots().plot([0, 1])
        return Analysis("factors", {"users": np.int64(3)}, {"ranking": Table(ROWS, figure)})

    names = [path.name for path in analysis().write(tmp_path / "a")]
    assert names[:3] == [f"factors_ranking.{kind}" for kind in ("csv", "png", "svg")]
    assert names[3] == "factors.json"
    analysis().write(tmp_path / "b")
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    tree = json.loads((tmp_path / "a" / "factors.json").read_text(encoding="utf-8"))
    assert tree["users"] == 3
    assert tree["tables"]["ranking"][1]["importance"] is None
    with (tmp_path / "a" / "factors_ranking.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["importance"] for row in rows] == ["0.25", ""]


def test_lines_for_a_terminal_stand_in_columns():
    assert aligned(ROWS, ["factor", "importance", "matters", "p"]) == [
        "factor  importance  matters      p",
        "gap           0.25      yes      0",
        "hour             –       no  −0.01",  # noqa: RUF001
    ]


def test_no_cell_of_a_csv_begins_a_formula_and_numbers_stay():
    cells = ["=1+1", "+1", "-1", "@x", "\tx", "'=1", "plain", "'plain", -1.5]
    rows = list(csv.DictReader(to_csv([{"a": cell} for cell in cells]).splitlines()))
    shown = [row["a"] for row in rows]
    assert shown == ["'=1+1", "'+1", "'-1", "'@x", "'\tx", "''=1", "plain", "'plain", "-1.5"]
    texts = [cell for cell in cells if isinstance(cell, str)]
    assert [with_formula(str(without_formula(cell))) for cell in texts] == texts
