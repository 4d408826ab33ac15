"""The review queue: risky first, decided once, rejected withheld, bad files refused by place."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from llm_influence import cli
from llm_influence.analysis.review import read_queue, update_queue, withhold
from llm_influence.analysis.tables import InfluenceView
from llm_influence.errors import DataError
from llm_influence.influence.table_files import read_tables
from tests.analysis.synthetic import influences, write


def score(behavior, back, random):
    return random.normal()


@pytest.fixture
def folder(tmp_path):
    """Fifty explanations; one event of u7 has all the influence."""
    records = influences(score, users=50)
    records[7].values[:] = np.where(np.arange(12) == 3, 5.0, 0.0)
    return write(tmp_path / "t", records)


def queued(folder, path, **options):
    with InfluenceView(folder) as view:
        return update_queue(view, path, **options)


def decide(path, decisions):
    rows = list(csv.DictReader(path.read_text().splitlines()))
    for row in rows:
        row["decision"], row["note"] = decisions.get(row["user_id"], ("", ""))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_risky_explanations_are_drawn_more_often_and_the_same_each_time(folder, tmp_path):
    path = tmp_path / "queue.csv"
    queue = queued(folder, path, size=50)
    by_user = {record["user_id"]: record for record in queue.records}
    assert max(by_user, key=lambda user: by_user[user]["risk"]) == "u7"
    assert by_user["u7"]["largest_share"] == 1
    assert by_user["u7"]["reason"] == "one event has much influence"
    assert by_user["u7"]["strongest"].endswith("+5")
    risks = [record["risk"] for record in queue.records]
    assert risks == sorted(risks, reverse=True)
    with InfluenceView(folder) as view:
        queues = [update_queue(view, tmp_path / f"{s}.csv", size=5, seed=s) for s in range(40)]
    drawn = [[record["user_id"] for record in queue.records] for queue in queues]
    assert np.mean(["u7" in users for users in drawn]) > 0.2  # evenly it would be 0.1
    assert len({tuple(users) for users in drawn}) > 30
    again = queued(folder, tmp_path / "again.csv", size=5, seed=3)
    assert [each["user_id"] for each in again.records] == drawn[3]


def test_what_is_decided_is_kept_and_not_asked_again(folder, tmp_path):
    path = tmp_path / "queue.csv"
    first = [each["user_id"] for each in queued(folder, path, size=4).records]
    decide(path, {first[0]: ("Accept ", "fine"), first[1]: ("reject", "says, too much")})
    queue = queued(folder, path, size=4)
    assert (queue.waiting, queue.decided("accept"), queue.decided("reject")) == (4, 1, 1)
    kept = {each["user_id"]: each for each in read_queue(path)}
    assert kept[first[1]]["note"] == "says, too much"
    assert len(kept) == 6
    text = path.read_text()
    queued(folder, path, size=4)
    assert path.read_text() == text


def test_rejected_explanations_are_withheld_whole_and_no_others(folder, tmp_path):
    path = tmp_path / "queue.csv"
    users = [each["user_id"] for each in queued(folder, path, size=3).records]
    decide(path, {users[0]: ("reject", ""), users[1]: ("accept", "")})
    table = read_tables(folder)
    left = withhold(table, read_queue(path))
    assert set(table["user_id"].to_pylist()) - set(left["user_id"].to_pylist()) == {users[0]}
    assert len(left) == len(table) - 12
    everything = [{**record, "decision": "reject"} for record in read_queue(path)]
    one = table.filter(np.isin(table["user_id"].to_pylist(), users))
    with pytest.raises(DataError, match="every explanation was rejected"):
        withhold(one, everything)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("decision", "verdict"), "column 'decision' missing"),
        (lambda text: text.replace(",,\n", ",maybe,\n", 1), "row 2, column 'decision': 'maybe'"),
        (lambda text: text + text.splitlines()[1] + "\n", "row 5, column 'user_id'"),
        (lambda text: text + ",leave_one_out,item,i0" + "," * 11 + "\n", "row 5, column 'user_id'"),
        (lambda text: text + "u1,x\n", "row 5: another number of cells"),
    ],
)
def test_a_damaged_file_is_refused_by_row_and_column(folder, tmp_path, change, message):
    path = tmp_path / "queue.csv"
    queued(folder, path, size=3)
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        queued(folder, path, size=3)


def test_the_command_says_how_many_wait(folder, tmp_path):
    words = ["review", "--tables", str(folder), "--out", str(tmp_path / "q.csv"), "--size", "3"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    assert "3 wait, 0 accepted, 0 rejected" in result.output


def test_ids_that_begin_a_formula_come_back_from_the_file_as_they_were(tmp_path):
    records = [
        replace(record, user_id=f"=u{place}", target_id="-1")
        for place, record in enumerate(influences(lambda *_: 1.0, users=3))
    ]
    folder, path = write(tmp_path / "t", records), tmp_path / "queue.csv"
    with InfluenceView(folder) as view:
        update_queue(view, path, size=3)
    assert "'=u0" in path.read_text()
    assert {row["user_id"] for row in read_queue(path)} == {"=u0", "=u1", "=u2"}
    assert {row["target_id"] for row in read_queue(path)} == {"-1"}
