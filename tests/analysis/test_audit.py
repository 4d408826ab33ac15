"""The audit of tables whose fairness is known."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from benchmarks.analysis.planted_tables import write_truth
from llm_influence import cli
from llm_influence.analysis.audit import analyze_audit
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import AuditOptions
from llm_influence.config.data import PlantedConfig
from llm_influence.datasets.planted import make_planted
from llm_influence.errors import ConfigError, DataError, SchemaError
from llm_influence.influence.table_files import (
    FAIRNESS_TEST,
    FAIRNESS_TEST_SCHEMA,
    write_fairness_test,
)
from tests.analysis.synthetic import influences, write

PLANTED = {"users": 300, "clusters": 4, "temperature": 0.6, "group_share": 0.4, "max_events": 10}
OPTIONS = AuditOptions(("user:group",), shuffles=199)


def planted(folder, **options):
    _, truth = make_planted(PlantedConfig(**PLANTED, **options))
    return write_truth(truth, folder)


def audit(folder, options=OPTIONS):
    with InfluenceView(folder) as view:
        return analyze_audit(view, options)


@pytest.fixture(scope="module")
def unfair(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("unfair"), group_shift=0.8)


@pytest.fixture(scope="module")
def found(unfair):
    return audit(unfair)


def verdict(analysis):
    (row,) = analysis.tables["verdict"].records
    return row


def test_an_unfair_process_is_found_with_what_it_favours(found):
    row = verdict(found)
    assert row["unfair"]
    assert row["because"] == "difference given history"
    differences = {each["measure"]: each for each in found.tables["differences"].records}
    favoured = differences["cluster 0 recommended"]
    assert favoured["group"] == "a"
    assert favoured["difference_high"] < 0
    assert differences["influence of the user's features"]["mean"] == 0
    assert differences["influence of the user's features"]["significant"]
    assert 0 < row["user_share_low"] < row["user_share"] < row["user_share_high"] < 1


@pytest.mark.slow
def test_a_fair_process_is_not_accused_even_where_groups_do_different_things(tmp_path):
    row = verdict(audit(planted(tmp_path / "same")))
    assert not row["unfair"]
    assert row["p_difference"] > 0.05
    assert row["proxies"] == 0
    assert row["proxy_share"] == 0
    row = verdict(audit(planted(tmp_path / "taste", group_taste=0.4, seed=1)))
    assert not row["unfair"]
    assert row["p_difference"] <= 0.05  # the groups get different things all the same
    assert row["proxies"] > 0
    assert 0 < row["proxy_share_low"] < row["proxy_share"] < 1
    assert row["history_auc"] > 0.6


def test_the_share_through_the_features_is_that_of_the_rows(unfair):
    table = pq.read_table(unfair / "part-00000.parquet").to_pandas()
    table["size"] = table["score"].abs()
    by_user = table.groupby("user_id")["size"].sum()
    own = table[table["position"].isna()].set_index("user_id")["size"]
    shares = (own / by_user).fillna(0)  # nothing moved the target of one user
    assert verdict(audit(unfair))["user_share"] == pytest.approx(shares.mean())


def test_what_passes_through_proxies_counts_each_event_once(found):
    row, proxies = verdict(found), found.tables["proxies"].records
    clusters = [each for each in proxies if each["kind"] == "item:cluster"]
    assert clusters[0]["group"] == "b"
    assert clusters[0]["level"] == "0"
    strongest = max(each["strength"] for each in proxies)
    assert max(each["through"] for each in proxies) <= row["proxy_share"] <= strongest


def fairness_test(folder, changed, users=60):
    rows = [
        {
            "run": "run",
            "user_id": f"u{user}",
            "feature": "age",
            "value": "20",
            "other": "30",
            "item_id": "i0",
            "item_other": "i1" if user < changed else "i0",
            "changed": user < changed,
            "kept": 0.5,
            "k": 10,
            "log_odds": 0.0,
            "log_odds_other": -1.0,
        }
        for user in range(users)
    ]
    write_fairness_test(pa.Table.from_pylist(rows, FAIRNESS_TEST_SCHEMA), folder)


def fair_tables(folder):
    """Two ages, and scores and predictions that have nothing to do with them."""
    records = influences(lambda behavior, back, random: random.normal(), users=60)
    write(folder, records)
    ages = pa.table({"user_id": [f"u{u}" for u in range(60)], "age": ["20", "30"] * 30})
    pq.write_table(ages, folder / "users.parquet")
    return folder


@pytest.mark.slow
def test_a_fairness_test_beside_the_tables_decide_beyond_what_is_tolerated(tmp_path):
    folder, options = fair_tables(tmp_path), AuditOptions(("user:age",), shuffles=199)
    assert verdict(audit(folder, options))["changed"] is None
    fairness_test(folder, changed=2)
    few = verdict(audit(folder, options))
    assert few["changed"] == pytest.approx(2 / 60)
    assert not few["unfair"]
    fairness_test(folder, changed=20)
    many = audit(folder, options)
    assert verdict(many)["because"] == "counterfactual fairness test"
    (pair,) = many.tables["fairness_test"].records
    assert pair["changed_low"] < pair["changed"] == pytest.approx(1 / 3)
    assert pair["log_odds_moved"] == -1
    assert not verdict(audit(folder, AuditOptions(("user:age",), tolerated=0.4)))["unfair"]


def test_bad_tables_are_refused_with_what_to_do(tmp_path, unfair):
    for feature, what in (
        ("user:gendr", "unknown column"),
        ("item:cluster", "no feature of users"),
    ):
        with pytest.raises((DataError, ConfigError), match=what):
            audit(unfair, AuditOptions((feature,)))
    few = write(tmp_path / "few", influences(lambda *_: 1.0, users=1))
    with pytest.raises(DataError, match="explanations of 1 user"):
        audit(few, AuditOptions(("user:age",)))
    folder = fair_tables(tmp_path / "f")
    names = [f"u{u}" for u in range(60)]
    one = pa.table({"user_id": names, "age": ["20"] * 60})
    pq.write_table(one, folder / "users.parquet")
    with pytest.raises(DataError, match="on every row"):
        audit(folder, AuditOptions(("user:age",)))
    small = pa.table({"user_id": names, "age": ["x"] * 53 + ["y"] * 7})
    pq.write_table(small, folder / "users.parquet")
    with pytest.raises(DataError, match="x: 53, y: 7"):
        audit(folder, AuditOptions(("user:age",)))
    pq.write_table(pa.table({"user_id": names}), folder / FAIRNESS_TEST)
    with pytest.raises(SchemaError, match=FAIRNESS_TEST):
        audit(folder, AuditOptions(("user:age",)))


def test_users_of_unknown_groups_stand_aside(tmp_path):
    folder = fair_tables(tmp_path)
    ages = ["20", "30"] * 25 + [""] * 10
    table = pa.table({"user_id": [f"u{u}" for u in range(60)], "age": ages})
    pq.write_table(table, folder / "users.parquet")
    row = verdict(audit(folder, AuditOptions(("user:age",), shuffles=199)))
    assert (row["users"], row["users_without_group"]) == (50, 10)


def test_the_command_writes_every_table_the_same_each_time(unfair, tmp_path):
    words = ["analyze", "audit", str(unfair), "--sensitive", "user:group", "--shuffles", "199"]
    for name in ("one", "two"):
        result = CliRunner().invoke(cli.app, [*words, "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
        assert "unfairness found" in result.output
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"audit.json", "audit_differences.svg", "audit_proxies.csv", "audit_verdict.csv"} <= {
        *files
    }
    for name in files:
        if not name.endswith(".png"):
            pair = [(tmp_path / each / name).read_bytes() for each in ("one", "two")]
            assert pair[0] == pair[1], name
    tree = json.loads((tmp_path / "one" / "audit.json").read_text())
    assert np.isfinite(tree["tables"]["verdict"][0]["p_value"])
