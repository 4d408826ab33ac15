"""Factors, and sums of events by level, age and window."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_influence.analysis.columns import windows_of
from llm_influence.analysis.levels import MOST_LEVELS, OTHER, factor_of, gather_cells
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import DynamicsOptions
from tests.analysis.synthetic import cells_of, influences, timed, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    records = influences(lambda _behavior, _back, random: random.normal(), users=60)
    return write(tmp_path_factory.mktemp("t"), records)


def test_numbers_are_cut_into_ranges_and_many_names_into_the_most_frequent(folder):
    with InfluenceView(folder) as view:
        age, user = factor_of(view, "user:age"), factor_of(view, "user_id")
        assert [level.count(" to ") for level in age.levels] == [1] * 5
        assert (len(user.levels), user.levels[-1]) == (MOST_LEVELS, OTHER)
        coded = view.table(
            f"SELECT {age.codes('v')} AS code, min(v) AS low, max(v) AS high "
            f"FROM ({view.select('user:age')}) AS t(v) GROUP BY 1 ORDER BY 1"
        ).to_pylist()
    for row, level in zip(coded, age.levels, strict=True):
        assert f"{row['low']:.0f} to {row['high']:.0f}" == level


def test_one_pass_over_the_tables_gives_the_sums_of_a_loop_however_they_are_cut(tmp_path):
    def score(behavior, age, _moment, random):
        return 0.5 ** (age / 21_600) * (behavior != "dismiss") + 0.1 * random.normal()

    records = timed(score, users=130)
    rows = [(n, e, r) for n, r in enumerate(records) for e in zip(r.events, r.values, strict=True)]
    user = np.array([n for n, _, _ in rows])
    behavior = np.array([event.behavior for _, (event, _), _ in rows])
    age = np.array([r.events[-1].timestamp - event.timestamp for _, (event, _), r in rows])
    last = np.array([r.events[-1].timestamp for _, _, r in rows])
    scores = np.array([value for _, (_, value), _ in rows])
    windows = windows_of(int(last.min()), int(last.max()), "week")
    days = np.array([windows.starts[0].toordinal() - 719_163])
    window = (last // 86_400 - days) // 7
    for shards in (1, 3):
        with InfluenceView(write(tmp_path / str(shards), records, shards=shards)) as view:
            codes = {name: n for n, name in enumerate(_users(view))}
            own = np.array([codes[records[n].user_id] for n in user])
            found = list(gather_cells(view, [factor_of(view, "behavior")], windows))
            sizes = list(gather_cells(view, [], windows, DynamicsOptions(response="size")))
        assert [cells.level for cells in found] == ["", *factor_levels(behavior)]
        for cells in found:
            rows = behavior == cells.level if cells.level else np.ones(len(own), dtype=bool)
            wanted = cells_of(
                own[rows], age[rows], window[rows], scores[rows], windows=len(windows.starts)
            )
            _same(cells, wanted)
        _same(sizes[0], cells_of(own, age, window, np.abs(scores), windows=len(windows.starts)))


def _users(view):
    names = view.table("SELECT user_id FROM user_codes ORDER BY user_code")
    return names["user_id"].to_pylist()


def factor_levels(behavior):
    names, counts = np.unique(behavior, return_counts=True)
    return sorted(names, key=lambda name: (-counts[list(names).index(name)], name))


def _same(cells, wanted):
    for name in ("totals", "events", "ages", "window_totals", "window_events"):
        np.testing.assert_allclose(getattr(cells, name), getattr(wanted, name), atol=1e-9)


@pytest.mark.parametrize("column", ["genre", "{genre}"])
def test_braces_in_categories_and_column_names_are_text(tmp_path, column):
    folder = write(tmp_path / "t", influences(lambda *_: 1.0, users=6))
    items = pq.read_table(folder / "items.parquet")
    texts = [["{0}", "a {", "it's }"][row % 3] for row in range(len(items))]
    items = items.drop_columns("genre").append_column(column, pa.array(texts))
    pq.write_table(items, folder / "items.parquet")
    with InfluenceView(folder) as view:
        factor = factor_of(view, f"item:{column}")
        assert set(factor.levels) == set(texts)
        factor_of(view, f"match:{column}")
        codes = factor.codes("v")
        rows = view.table(
            f"SELECT DISTINCT v, {codes} AS code FROM ({view.select(factor.name)}) AS t(v)"
        ).to_pylist()
    assert all(factor.levels[row["code"]] == row["v"] for row in rows)
