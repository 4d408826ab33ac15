"""Credit of marketing channels for conversions: influence on the model beside attribution rules.

``outcomes.parquet`` beside the influence tables says what came after each explained history. An
explanation finds its outcome by its user and by the number of events before the query time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from llm_influence.analysis.attribution_rules import (
    COMPARING,
    ChannelPaths,
    Sums,
    effect_of,
    gather,
    shares_of,
)
from llm_influence.analysis.columns import beside
from llm_influence.analysis.output import (
    Analysis,
    Record,
    Records,
    Table,
    aligned,
    closing_lines,
    finish_rows,
    new_figure,
    points,
)
from llm_influence.analysis.statistics import LEVEL
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import ESTIMATORS, ChannelOptions, Estimator
from llm_influence.data.readers import read_table
from llm_influence.data.schema import as_text
from llm_influence.errors import DataError, SchemaError, unknown
from llm_influence.influence.plots import BASELINE, MARKERS, OKABE_ITO
from llm_influence.influence.table_files import OUTCOMES
from llm_influence.types import FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_USERS = 10
_OUTCOMES = """
CREATE TABLE outcome_of AS
SELECT x.explanation, x.user_code, o.converted
FROM explanations AS x
JOIN user_codes AS c USING (user_code)
JOIN (
    SELECT explanation, any_value(left_out) AS left_out FROM influence_rows GROUP BY explanation
) AS l USING (explanation)
JOIN outcomes AS o ON o.user_id = c.user_id AND {same}
"""


def analyze_channels(view: InfluenceView, options: ChannelOptions) -> Analysis:
    """Credit the same conversions to channels in several ways.

    An estimator's ``effect`` of a channel is the part of all conversions credited to it; its
    ``share`` is the effect divided by the sum of the sizes of all effects. The model's effect on a
    conversion is the part of the predicted probability that is lost without the influence of the
    channel's touches: ``1 - sigma(full - influence) / sigma(full)``. Intervals resample users.

    Args:
        view: The tables, with at least `LEAST_USERS` users.
        options: Channels, outcomes and estimators.

    Returns:
        Tables ``shares``, ``channels`` and ``distances``.

    Raises:
        DataError: There are too few users, no conversion, only conversions, fewer than two
            channels, an unknown column or estimator, or scores that are no log-odds.
        SchemaError: The outcomes lack a column.
    """
    _check(view, options)
    file = find_outcomes(view.sources, options.outcomes)
    counts = join_outcomes(
        view, file, conversion=options.conversion, positive_from=options.positive_from
    )
    _check_outcomes(counts, options.estimators)
    paths = ChannelPaths(view, options.channel, options.touches)
    sums = gather(paths, len(paths.channels), options)
    effects = {name: effect_of(name, sums) for name in options.estimators}
    shares = _shares(paths.channels, effects)
    tables = {
        "shares": Table(shares, draw_shares(shares, paths.channels, options.estimators)),
        "channels": Table(_channels(paths.channels, sums)),
    }
    if "model" in effects and len(effects) > 1:
        tables["distances"] = Table(_distances(effects))
    facts = {**view.facts(options), **counts, "touched_conversions": int(sums.touched[0])}
    return Analysis("channels", facts, tables, _shown(facts, tables, paths.channels))


def _shares(channels: tuple[str, ...], effects: Mapping[Estimator, FloatArray]) -> list[Record]:
    """One record per estimator and channel."""
    records: list[Record] = []
    for name, effect in effects.items():
        columns = {"share": shares_of(effect), "effect": effect}
        intervals = {key: _interval(values) for key, values in columns.items()}
        for place, channel in enumerate(channels):
            record: Record = {"estimator": name, "channel": channel}
            for key, values in columns.items():
                prefix = "" if key == "share" else "effect_"
                record[key] = float(values[0, place])
                for end, bounds in zip(("low", "high"), intervals[key], strict=True):
                    record[f"{prefix}{end}"] = bounds[place]
            records.append(record)
    return records


def _interval(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Percentiles over the resamples that have a value; nan where there are none."""
    known = values[1:][~np.isnan(values[1:]).any(axis=1)]
    if not len(known):
        known = np.full((1, values.shape[1]), np.nan)
    low, high = np.quantile(known, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return low, high


def _channels(channels: tuple[str, ...], sums: Sums) -> list[Record]:
    """Counts of each channel."""
    paths, conversions = sums.sets[:, 0]
    records = []
    for place, channel in enumerate(channels):
        met = (np.arange(len(paths)) >> place) & 1 == 1
        count, hits, others = paths[met].sum(), conversions[met].sum(), paths[~met].sum()
        records.append(
            {
                "channel": channel,
                "touches": int(sums.touches[place]),
                "paths": int(count),
                "conversions": int(hits),
                "rate_with": float(hits / count) if count else np.nan,
                "rate_without": float(conversions[~met].sum() / others) if others else np.nan,
                "mean_influence": float(sums.score[0, place] / sums.conversions[0]),
            }
        )
    return records


def _distances(effects: Mapping[Estimator, FloatArray]) -> list[Record]:
    """Distance of each estimator's shares from the model's: half the sum of differences."""
    model = effects["model"]
    records = []
    for name, effect in effects.items():
        if name == "model":
            continue
        distance = np.abs(shares_of(effect) - shares_of(model)).sum(axis=1, keepdims=True) / 2
        low, high = _interval(distance)
        records.append(
            {
                "estimator": name,
                "distance": float(distance[0, 0]),
                "low": low[0],
                "high": high[0],
                "rank_correlation": float(stats.spearmanr(effect[0], model[0]).statistic),
            }
        )
    return records


def _shown(
    facts: Mapping[str, Any], tables: Mapping[str, Table], channels: tuple[str, ...]
) -> list[str]:
    shares = {(row["estimator"], row["channel"]): row["share"] for row in tables["shares"].records}
    names = list(dict.fromkeys(estimator for estimator, _ in shares))
    rows = [{"channel": c, **{name: shares[name, c] for name in names}} for c in channels]
    lines = [
        f"{facts['conversions']:,} conversions of {facts['explanations']:,} explained histories, "
        f"{facts['touched_conversions']:,} with a touch; {facts['method']}; shares by channel:",
        *aligned(rows, ["channel", *names]),
    ]
    if "model" in names:
        lines += ["", "model: influence on the model, no proof of what caused the conversion"]
    if facts["without_outcome"]:
        lines.append(f"left out: {facts['without_outcome']:,} explanations without an outcome")
    return lines + closing_lines(facts)


BAND = 0.76  # part of the distance between two channels that their points take


def draw_shares(shares: Records, channels: Sequence[str], estimators: Sequence[str]) -> Figure:
    """For each channel, the shares of all estimators beside each other."""
    *colors, black = OKABE_ITO
    figure = new_figure(8.4, 1.3 + 0.12 * len(channels) * (len(estimators) + 1))
    axis = figure.subplots()
    for number, name in enumerate(estimators):
        shift = BAND * ((number + 0.5) / len(estimators) - 0.5)
        points(
            axis,
            [row for row in shares if row["estimator"] == name],
            ("share", "low", "high"),
            places=np.arange(len(channels)) + shift,
            color=black if name == "model" else colors[number % len(colors)],
            marker=MARKERS[number % len(MARKERS)],
            markerfacecolor=None if name == "model" else "white",
            label=name.replace("_", " "),
        )
    finish_rows(axis, channels, "share of the credit of all channels, 95% interval over users")
    for edge in range(1, len(channels)):
        axis.axhline(edge - 0.5, color=BASELINE, linewidth=0.5, alpha=0.5)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    return figure


# --- checks ----------------------------------------------------------------------------------


def _check(view: InfluenceView, options: ChannelOptions) -> None:
    view.require_users(LEAST_USERS, "intervals resample users")
    for name in options.estimators:
        if name not in ESTIMATORS:
            raise unknown(DataError, "estimator", name, ESTIMATORS, where="--estimator")
    if "model" not in options.estimators:
        return
    rows = view.table(
        "SELECT count(*) AS n FROM influence_rows WHERE prediction IS NULL OR units <> 'target'"
    )["n"][0].as_py()
    if rows:
        raise DataError(
            f"{rows:,} rows of method {view.method!r} are no influence on log-odds",
            where="influence tables",
            expected="scores in log-odds of an item, a behaviour or feedback",
            fix="explain with leave_one_out or shapley, or leave out --estimator model",
        )


def _check_outcomes(counts: Mapping[str, int], estimators: Sequence[Estimator]) -> None:
    explanations, conversions = counts["explanations"], counts["conversions"]
    if not conversions:
        raise DataError(
            f"none of {explanations:,} explained histories ended in a conversion",
            where="outcomes",
            expected="at least one conversion",
            fix="explain histories before conversions too, or correct --conversion",
        )
    comparing = [name for name in estimators if name in COMPARING]
    if comparing and conversions == explanations:
        others = " ".join(f"--estimator {name}" for name in estimators if name not in COMPARING)
        raise DataError(
            f"all {explanations:,} explained histories ended in a conversion",
            where="outcomes",
            expected=f"some without a conversion, for the estimators {', '.join(comparing)}",
            fix=f"explain such histories too, or use {others}",
        )


# --- outcomes --------------------------------------------------------------------------------


def join_outcomes(
    view: InfluenceView, file: Path, *, conversion: str | None = None, positive_from: float = 1.0
) -> dict[str, int]:
    """Create the table ``outcome_of`` with explanation, user_code and converted; give its counts.

    The file has `user_id`; `before`, the user's events before the query time (can be omitted if
    each user has one outcome); and `label` or `behavior`. A conversion is the behaviour
    ``conversion`` or, without it, a label of at least ``positive_from``; rows without a label are
    left out.
    """
    table = _read_outcomes(file, conversion, positive_from)
    keyed = "before" in table.column_names
    _check_once(view, table, file, keyed=keyed)
    view.load("outcomes", table)
    view.execute("DROP TABLE IF EXISTS outcome_of")
    view.execute(_OUTCOMES.format(same="o.before = l.left_out + x.events" if keyed else "TRUE"))
    view.execute("DROP TABLE outcomes")
    (counts,) = view.table(
        "SELECT count(*) AS explanations, coalesce(sum(converted::INTEGER), 0)::BIGINT "
        "AS conversions FROM outcome_of"
    ).to_pylist()
    if not counts["explanations"]:
        raise DataError(
            "no explanation has an outcome",
            where=str(file),
            expected="the explained users and their numbers of events before the query time",
            fix="name the outcomes of these explanations with --outcomes",
        )
    return {**counts, "without_outcome": view.explanations - counts["explanations"]}


def find_outcomes(sources: Sequence[Path], given: Path | None) -> Path:
    """The given file, or the one beside the tables."""
    files = [given] if given else beside(sources, OUTCOMES)
    if len(files) != 1:
        raise DataError(
            f"{len(files) or 'no'} files {OUTCOMES}",
            where=", ".join(map(str, sources)),
            expected="one table that says which explained histories ended in a conversion",
            fix="explain with --examples test, which writes it, or name a file with --outcomes",
        )
    return files[0]


def _read_outcomes(file: Path, conversion: str | None, positive_from: float) -> pa.Table:
    """The columns user_id, converted, and before if it is there."""
    where, column = str(file), "label" if conversion is None else "behavior"
    table = read_table(file, text=("user_id",))
    for name in ("user_id", column):
        if name not in table.column_names:
            raise SchemaError(
                f"column {name!r} is missing",
                where=where,
                expected="`user_id`, and `label` (1: converted) or, with --conversion, `behavior`",
                fix="add the column, or name the behaviour of a conversion with --conversion",
            )
    if conversion is None:
        converted = pc.greater_equal(_numbers(table[column], column, where), positive_from)
    else:
        behaviors = as_text(table[column], name=column, where=where)
        known = [str(name) for name in pc.unique(behaviors).to_pylist()]
        if conversion not in known:
            raise unknown(DataError, "behaviour", conversion, known, where=where)
        converted = pc.equal(behaviors, conversion)
    users = as_text(table["user_id"], name="user_id", where=where)
    columns = {"user_id": users, "converted": converted}
    if "before" in table.column_names:
        columns["before"] = _numbers(table["before"], "before", where).cast(pa.int64())
    return pa.table(columns).filter(pc.is_valid(converted))


def _numbers(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """The column as float64, null for nan."""
    try:
        numbers = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(numbers), None, numbers)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        fix = "write the column as numbers"
        raise SchemaError(
            f"column {name!r} has {column.type} ({error})", where=where, expected="numbers", fix=fix
        ) from error


def _check_once(view: InfluenceView, table: pa.Table, file: Path, *, keyed: bool) -> None:
    """Refuse two outcomes with the same key, and two explanations with the same key."""
    keys = ["user_id", "before"] if keyed else ["user_id"]
    fix = (
        "leave one of them out" if keyed else "add a column `before`, the number of earlier events"
    )
    if len(table.group_by(keys).aggregate([])) < len(table):
        found = f"two rows of the same {' and '.join(keys)}"
        raise DataError(found, where=str(file), expected="one outcome per explanation", fix=fix)
    code = "user_code, before" if keyed else "user_code"
    twice = view.table(
        f"SELECT any_value(user_id) AS user_id, count(*) AS n FROM (SELECT x.user_code, "
        "any_value(r.user_id) AS user_id, any_value(r.left_out) + any_value(x.events) AS before "
        "FROM influence_rows AS r JOIN explanations AS x USING (explanation) "
        f"GROUP BY explanation, user_code) GROUP BY {code} HAVING n > 1 LIMIT 1"
    )
    if len(twice):
        user, count = twice["user_id"][0].as_py(), twice["n"][0]
        raise DataError(
            f"{count} explanations of user {user!r}{' at one query time' if keyed else ''}",
            where="influence tables",
            expected="one explanation per outcome",
            fix="choose with --target or --run, or give the outcomes a column `before`",
        )
