"""The view says of every event what a loop over explanations says."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_influence.analysis.columns import AGES, GAPS, RECENCY
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import Choice, Resources
from llm_influence.errors import ConfigError, DataError, SchemaError
from llm_influence.influence.facts import Player
from llm_influence.influence.influence import to_arrow
from llm_influence.influence.table_files import read_tables, write_table
from tests.analysis.synthetic import GENRES, influences, write

NAMES = (
    *("user_id", "position", "timestamp", "score", "from_end", "age_seconds", "gap", "recency"),
    *("age", "hour", "weekday", "sessions_back", "item:genre", "match:genre", "user:age"),
)


def anything(_behavior, _back, random):
    return float(random.normal())


@pytest.fixture(scope="module")
def records():
    return influences(anything, users=7)


@pytest.fixture
def folder(tmp_path, records):
    return write(tmp_path / "t", records)


def rows_of(view, *names):
    table = view.table(f"SELECT * FROM ({view.select(*names)}) ORDER BY user_id, position")
    return table.to_pylist()


def expected(record):
    """The derived columns of an explanation, worked out event by event."""
    times = np.array([event.timestamp for event in record.events])
    gaps = np.diff(times, prepend=times[0])
    last = len(times) - 1
    for place, event in enumerate(record.events):
        item = int(event.item[1:])
        gap = GAPS.names[int(GAPS.codes(np.array([gaps[place] if place else -1]))[0])]
        yield {
            "user_id": record.user_id,
            "position": place,
            "timestamp": event.timestamp,
            "score": record.values[place],
            "from_end": last - place,
            "age_seconds": times[-1] - times[place],
            "gap": gap,
            "recency": RECENCY.names[int(RECENCY.codes(np.array([last - place]))[0])],
            "age": AGES.names[int(AGES.codes(times[-1:] - times[place])[0])],
            "hour": np.datetime64(int(times[place]), "s").astype(object).hour,
            "weekday": np.datetime64(int(times[place]), "s").astype(object).strftime("%A"),
            "sessions_back": int((gaps[place + 1 :] > 1800).sum()),
            "item:genre": GENRES[item % 3],
            "match:genre": "target" if item % 3 == 0 else "neither",
            "user:age": 20.0 + int(record.user_id[1:]),
        }


def test_derived_columns_are_those_of_a_loop(folder, records):
    with InfluenceView(folder) as view:
        found = rows_of(view, *NAMES)
        assert (view.users, view.explanations, view.events) == (7, 7, 84)
    wanted = [
        row for record in sorted(records, key=lambda r: r.user_id) for row in expected(record)
    ]
    assert found == wanted


def test_a_contrast_matches_either_side(tmp_path):
    write(tmp_path, influences(anything, users=3, target=("contrast", "i0 over i1")))
    with InfluenceView(tmp_path) as view:
        rows = rows_of(view, "user_id", "position", "item:genre", "match:genre")
    sides = {(row["item:genre"], row["match:genre"]) for row in rows}
    assert sides == {("drama", "target"), ("comedy", "other"), ("war", "neither")}


def test_parts_of_events_are_added_up_and_the_users_part_is_left_out(tmp_path, records):
    whole = records[0]
    players = [Player(0, "behavior"), Player(0, "item"), Player(None, "user")]
    players += [Player(place, "item") for place in range(1, 12)]
    scores = np.arange(1.0, 15.0)
    record = replace(whole, values=scores, players=tuple(players))
    write_table(to_arrow([record]), tmp_path / "a.parquet")
    with InfluenceView(tmp_path) as view:
        rows = rows_of(view, "user_id", "position", "score", "from_end")
    assert [row["score"] for row in rows] == [3.0, *scores[3:]]
    assert [row["from_end"] for row in rows] == list(range(11, -1, -1))


def test_batches_hold_every_row_once_in_pieces_of_the_size_asked_for(folder):
    with InfluenceView(folder) as view:
        query = f"{view.select('score')} ORDER BY r.explanation, r.position"
        pieces = list(view.batches(query, size=25))
        whole = view.table(query)
    assert [len(piece) for piece in pieces] == [25, 25, 25, 9]
    assert pa.concat_tables(pieces).equals(whole)


def test_side_tables_beside_the_shards_are_no_influence_tables(folder):
    assert len(read_tables(folder)) == 84


def test_a_choice_takes_one_method(tmp_path, records):
    write(tmp_path, records)
    other = influences(anything, users=3, method="shapley")
    write_table(to_arrow(other), tmp_path / "part-9.parquet")
    with pytest.raises(DataError, match="several attribution methods: leave_one_out, shapley"):
        InfluenceView(tmp_path)
    with InfluenceView(tmp_path, choice=Choice(method="shapley")) as view:
        assert (view.users, view.method) == (3, "shapley")
    with pytest.raises(DataError, match="no row with method 'shapely'"):
        InfluenceView(tmp_path, choice=Choice(method="shapely"))


def test_broken_tables_are_refused(folder, tmp_path):
    table = pq.read_table(folder / "part-0.parquet")
    pq.write_table(table.drop_columns("score"), tmp_path / "short.parquet")
    with pytest.raises(SchemaError, match="lacks 'score'"):
        InfluenceView(tmp_path / "short.parquet")
    old = table.replace_schema_metadata({"llm_influence.schema": "0"})
    pq.write_table(old, tmp_path / "old.parquet")
    with pytest.raises(SchemaError, match="schema version '0'"):
        InfluenceView(tmp_path / "old.parquet")
    pq.write_table(table.slice(3), tmp_path / "cut.parquet")
    with pytest.raises(DataError, match="missing or out of order"):
        InfluenceView(tmp_path / "cut.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="no rows"):
        InfluenceView(tmp_path / "none.parquet")
    with pytest.raises(DataError, match="no such file"):
        InfluenceView(tmp_path / "nowhere")


def test_mistakes_of_the_caller_are_named(folder, tmp_path):
    with InfluenceView(folder) as view, pytest.raises(DataError, match="did you mean 'user:age'"):
        view.select("user:agee")
    with pytest.raises(ConfigError, match="memory 'plenty'"):
        InfluenceView(folder, resources=Resources(memory="plenty"))
    one = write(tmp_path / "one", influences(anything, users=1), shards=1)
    with InfluenceView(one) as view, pytest.raises(DataError, match="explanations of 1 user"):
        view.require_users(2, "standard errors are over users")


def test_different_items_beside_two_tables_must_be_chosen(folder, tmp_path, records):
    second = write(tmp_path / "second", records)
    pq.write_table(pa.table({"item_id": ["i0"], "genre": ["war"]}), second / "items.parquet")
    with pytest.raises(DataError, match="--items"):
        InfluenceView([folder, second])


def test_temporary_files_go_when_the_view_is_closed(folder, tmp_path):
    place = tmp_path / "temp"
    place.mkdir()
    with InfluenceView(folder, resources=Resources(temp=place)):
        assert list(place.iterdir())
    assert not list(place.iterdir())


def test_the_room_needs_no_torch():
    code = "import sys, llm_influence.analysis.factors; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_events_that_were_scored_together_are_refused(tmp_path, records):
    write(tmp_path, [replace(record, block=(0, 1)) for record in records])
    with pytest.raises(DataError, match=r"scored together.*--method leave_one_out"):
        InfluenceView(tmp_path)


def test_names_that_look_like_patterns_are_read_as_themselves(tmp_path, records):
    """A folder ``run[1]`` beside ``run1``, a file with a star, and a folder named like a column."""
    write(tmp_path / "run1", records[:2])
    write(tmp_path / "run[1]", records[2:])
    with InfluenceView(tmp_path / "run[1]") as view:
        assert view.explanations == len(records) - 2
    star = write_table(to_arrow(records[:3]), tmp_path / "a*.parquet")
    write_table(to_arrow(records), tmp_path / "ab.parquet")
    with InfluenceView(star) as view:
        assert view.explanations == 3
    with InfluenceView(write(tmp_path / "method=other", records)) as view:
        assert view.method == "leave_one_out"


def test_an_unfinished_batch_is_a_fact_of_its_analyses(folder):
    (folder / "plan.json").write_text('{"model": "a", "users": 9, "shard_size": 3}')
    with InfluenceView(folder) as view:
        assert "is not finished" in view.facts(Choice())["incomplete"]
