"""Factors of tables with known scores."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.analysis.planted_tables import write_truth
from llm_influence import cli
from llm_influence.analysis.decay import behavior_weights
from llm_influence.analysis.factors import analyze_factors
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import FactorOptions
from llm_influence.config.data import PlantedConfig
from llm_influence.datasets.planted import make_planted
from llm_influence.errors import DataError
from tests.analysis.synthetic import influences, write

WEIGHTS = {"purchase": 1.0, "click": 0.5, "dismiss": -0.5}


def known_score(behavior, back, random):
    """A behaviour's weight, halved with every two events further back, and noise."""
    return WEIGHTS[behavior] * 0.5 ** (back / 2) + 0.05 * random.normal()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("t"), influences(known_score, users=60))


@pytest.fixture(scope="module")
def found(folder):
    with InfluenceView(folder) as view:
        return analyze_factors(view, FactorOptions(seed=1))


def test_factors_of_the_scores_are_found_and_others_are_not(found):
    rows = {row["factor"]: row for row in found.tables["ranking"].records}
    assert {name for name, row in rows.items() if row["matters"]} == {"behavior", "recency"}
    assert rows["behavior"]["permutation_low"] > 0.2
    for name in ("gap", "value", "user:age", "item:genre"):
        assert rows[name]["spread_low"] == 0
        assert abs(rows[name]["permutation_share"]) < 0.1
    assert found.tables["ranking"].records[0]["factor"] == "behavior"


def test_effects_order_behaviours_and_partial_dependence_agrees(found):
    rows = [row for row in found.tables["effects"].records if row["factor"] == "behavior"]
    for column in ("effect", "partial_dependence"):
        order = sorted(rows, key=lambda row: row[column])
        assert [row["level"] for row in order] == ["dismiss", "click", "purchase"]
    assert all(row["low"] < row["effect"] < row["high"] for row in rows)


def test_the_pair_whose_effects_multiply_is_found(found):
    first = found.tables["interactions"].records[0]
    assert {first["first"], first["second"]} == {"behavior", "recency"}
    assert first["matters"]
    cells = found.tables["interaction_cells"].records
    latest = {
        row["first_level"]: row["effect"]
        for row in cells
        if (row["first"], row["second_level"]) == ("behavior", "1")
    }
    assert latest["purchase"] > 0.2 > -0.2 > latest["dismiss"]


def test_weights_are_those_of_the_scores(found):
    rows = {row["behavior"]: row for row in found.tables["weights"].records}
    for name, weight in WEIGHTS.items():
        assert rows[name]["weight"] == pytest.approx(weight, abs=0.08)
        assert rows[name]["low"] - 0.03 <= weight <= rows[name]["high"] + 0.03


def test_weights_of_a_planted_log_are_found_from_its_true_influences(tmp_path):
    _, truth = make_planted(PlantedConfig(users=300, seed=3))
    write_truth(truth, tmp_path)
    with InfluenceView(tmp_path) as view:
        records = behavior_weights(view, "match:cluster")
    weights = {row["behavior"]: row["weight"] for row in records}
    true = dict(zip(truth.process.behaviors, truth.process.weights, strict=True))
    assert weights == pytest.approx(true, abs=0.02)


def test_the_same_tables_give_the_same_answer_however_cut(tmp_path, found):
    write(tmp_path, influences(known_score, users=60), shards=5)
    with InfluenceView(tmp_path) as view:
        again = analyze_factors(view, FactorOptions(seed=1)).tables["ranking"].records
    for row, other in zip(found.tables["ranking"].records, again, strict=True):
        assert row["factor"] == other["factor"]
        assert row["spread"] == pytest.approx(other["spread"], rel=1e-6, abs=1e-9)


def test_what_cannot_be_analysed_is_refused(folder, tmp_path):
    def same(_behavior, _back, _random):
        return 1.0

    with InfluenceView(write(tmp_path / "same", influences(same))) as view:
        with pytest.raises(DataError, match="every score is 1"):
            analyze_factors(view)
        with pytest.raises(DataError, match="'method' is 'leave_one_out' on every row"):
            analyze_factors(view, FactorOptions(factors=("method",)))
    few = write(tmp_path / "few", influences(known_score, users=1), shards=1)
    with InfluenceView(few) as view, pytest.raises(DataError, match="explanations of 1 user"):
        analyze_factors(view)
    with InfluenceView(folder) as view, pytest.raises(DataError, match="did you mean 'recency'"):
        analyze_factors(view, FactorOptions(factors=("recensy",)))


def test_the_command_writes_files_and_prints_the_ranking(folder, tmp_path):
    words = ["analyze", "factors", folder, "--out", tmp_path, "--factor", "behavior"]
    words += ["--factor", "recency", "--sample", 2000, "--threads", 1]
    result = CliRunner().invoke(cli.app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0
    assert "behavior" in result.output
    tree = json.loads((tmp_path / "factors.json").read_text(encoding="utf-8"))
    assert [row["factor"] for row in tree["tables"]["ranking"]] == ["behavior", "recency"]
    names = {path.name for path in tmp_path.iterdir()}
    for table in ("ranking", "effects", "interactions", "weights"):
        assert {f"factors_{table}.{kind}" for kind in ("csv", "png", "svg")} <= names


def test_a_mistake_on_the_command_line_is_one_plain_line(folder, tmp_path, monkeypatch, capsys):
    words = ["llm-influence", "analyze", "factors", str(folder), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*words, "--response", "sise"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith("error: --response: unknown value 'sise'")


def test_size_has_no_sign(folder):
    with InfluenceView(folder) as view:
        options = FactorOptions(factors=("behavior",), response="size", sample=2000)
        rows = analyze_factors(view, options).tables["effects"].records
    means = {row["level"]: row["mean"] for row in rows}
    assert all(mean > 0 for mean in means.values())
    assert np.isclose(means["click"], means["dismiss"], rtol=0.25)
