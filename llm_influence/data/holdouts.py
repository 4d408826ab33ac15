"""Splits for two more tasks: items without history, and a new period after an old one.

The task of items that nobody has touched: kept out of training, asked for afterwards.

Items are drawn at random: some to be validated, others to be tested. Training never hears of
either: their events are taken out of the histories, so that the time to the next event is
measured past them, and they are not in the catalogue, not even as wrong answers. After
training they are added by their text alone (`InfluenceModel.add_items`) and every event of one of
them in the later part of a history is a question. All items are candidates, old and new. Histories
of examples are whole: new items that a user has met stand in them, and have to be read by their
text as well.

The task of a continual fine-tuning: an old period that a model knows, and a new one behind it.

One moment parts them. Events before it come from the log that the model was trained on, those from
it on from a newer log, or from the same log if that goes on. Examples of the new period are those
of the split of the whole log (`split_log`) whose asked event is new; examples of the old period
are the model's own test examples, or those of its validation where no test question is so old.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.config.data import SplitConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import (
    EvaluationSet,
    Split,
    events_before,
    events_per_user,
    iso,
    split_log,
)
from llm_influence.errors import ConfigError, DataError, EmptyLogError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ColdSplit:
    """One task of new items.

    Attributes:
        warm: What trains, over the catalogue of old items alone. It validates and tests by the
            first and the second old item behind the training part of each history, so that an
            epoch can be chosen without a look at any new item.
        cold: The new items, to be given to `InfluenceModel.add_items`.
        log: The whole log, coded by the old items with the new ones behind, as the model then has
            them.
        validation: Examples whose answer is a new item drawn for validation.
        test: Examples whose answer is a new item drawn for the test.
    """

    warm: Split
    cold: Catalogue
    log: BehaviorLog
    validation: EvaluationSet
    test: EvaluationSet


def cold_split(
    log: BehaviorLog,
    *,
    validation_items: float = 0.05,
    test_items: float = 0.1,
    later_part: float = 0.2,
    min_history: int = 5,
    seed: int = 0,
) -> ColdSplit:
    """Keep some items back from a log.

    Args:
        log: All events.
        validation_items: Share of the items that occur, kept back for validation.
        test_items: Share of them, others, kept back for the test.
        later_part: Share of each history, its end, that does not train and is asked about.
        min_history: Events that must stand before a question.
        seed: Of the draw of items.

    Raises:
        EmptyLogError: No question or nothing to train on is left.
    """
    group = _draw(log, validation_items, test_items, seed)
    old, new = np.flatnonzero(group == 0), np.flatnonzero(group > 0)
    catalogue, cold = log.catalogue.take(old), log.catalogue.take(new)
    whole = log.align(catalogue.extend(cold), log.code_names.behaviors)
    trained = np.floor((1 - later_part) * log.lengths).astype(np.int64)
    group_of_event = group[log.items]
    later = log.positions() >= np.repeat(np.maximum(trained, min_history), log.lengths)
    parts = [_examples(whole, later & (group_of_event == part)) for part in (1, 2)]
    warm = _warm_split(whole, catalogue, group_of_event == 0, trained)
    if not (len(parts[0]) and len(parts[1]) and len(warm.validation)):
        raise EmptyLogError(
            f"{len(parts[0])} examples validate, {len(parts[1])} test",
            where="cold_split",
            expected="at least one of each, and old items behind the training part",
            fix="keep more items back, lower min_history, or use a longer log",
        )
    return ColdSplit(warm, cold, whole, *parts)


def _draw(log: BehaviorLog, validation: float, test: float, seed: int) -> npt.NDArray[np.int8]:
    """(I,) 0 for an old item, 1 for one that validates, 2 for one that is tested."""
    occurring = np.unique(log.items)
    order = np.random.default_rng(seed).permutation(occurring)
    first = round(validation * len(order))
    group = np.zeros(len(log.catalogue), dtype=np.int8)
    group[order[:first]] = 1
    group[order[first : first + round(test * len(order))]] = 2
    return group


def _examples(log: BehaviorLog, which: npt.NDArray[np.bool_]) -> EvaluationSet:
    return EvaluationSet(log, log.rows_of_users()[which], log.positions()[which])


def _warm_split(
    whole: BehaviorLog, catalogue: Catalogue, is_old: npt.NDArray[np.bool_], trained: Ints
) -> Split:
    """The task of the old items: events of new ones never happened."""
    in_training = whole.positions() < np.repeat(trained, whole.lengths)
    counts = np.add.reduceat(is_old, whole.offsets[:-1], dtype=np.int64)
    trains = np.add.reduceat(is_old & in_training, whole.offsets[:-1], dtype=np.int64)
    users = np.flatnonzero(counts)
    log = BehaviorLog.from_arrays(
        user_ids=whole.user_ids.take(pa.array(users)),
        offsets=np.concatenate([[0], np.cumsum(counts[users])]),
        items=whole.items[is_old],
        timestamps=whole.timestamps[is_old],
        catalogue=catalogue,
        behaviors=whole.behaviors[is_old],
        behavior_names=whole.code_names.behaviors,
        values=whole.values[is_old],
        labels=None if whole.labels is None else whole.labels[is_old],
        users=None if whole.users is None else whole.users.take(pa.array(users)),
    )
    trains = trains[users]
    asked = [np.flatnonzero((trains > 0) & (trains + ahead < log.lengths)) for ahead in (0, 1)]
    validation, test = (
        EvaluationSet(log, rows, trains[rows] + ahead) for ahead, rows in enumerate(asked)
    )
    description = {
        "kind": "cold_items",
        "rule": "old items alone; the first and second one behind the training part are asked for",
        "items": len(catalogue),
        "train_events": int(trains.sum()),
        "validation_rows": len(validation),
        "test_rows": len(test),
    }
    return Split(log, log.prefix(trains), validation, test, description)


@dataclass(frozen=True, eq=False)
class Periods:
    """Both periods of one log, coded as the model will have it.

    Attributes:
        since: First moment of the new period, Unix seconds.
        split: The new period's examples; what trains is everything before them.
        known: (users of ``split.train``) how many of each one's first events are old.
        trained: (the same users) how many of them trained the model.
        old: The old period's examples, over ``split.log``.
        added: Items that the model does not know yet; the last ones of the log's catalogue.
    """

    since: int
    split: Split
    known: Ints
    trained: Ints
    old: EvaluationSet
    added: Catalogue


def part_periods(
    before: Split,
    newer: BehaviorLog | None,
    since: int | None,
    config: SplitConfig,
    *,
    described: bool = True,
) -> Periods:
    """Join a model's log with a newer one and ask about both periods.

    Args:
        before: The split that the model was trained on, over the model's own catalogue.
        newer: The newer log; its events before ``since`` are left out, as are those of the model's
            log from then on. None: the model's log goes on behind ``since`` itself.
        since: Unix seconds. Default: the second after the last event of the model's log.
        config: How the whole log is split for the new period's examples.
        described: Whether the newer log came with an item table, so that new items have texts.

    Raises:
        ConfigError: Without a newer log there is no default for ``since``.
        DataError: The model was trained on events from ``since`` on, or new items have no text.
        UnknownNameError: A behaviour is not known to the model.
        EmptyLogError: The new period has nothing to train on, to validate or to test, or the old
            one no question.
    """
    if since is None:
        if newer is None:
            raise ConfigError(
                "there is no newer log and no moment that cuts the run's own",
                where="update.since",
                expected="one of them",
                fix="pass --log FILE, or --update.since TIME",
            )
        since = int(before.log.timestamps.max()) + 1
    _check_untrained(before.train, since)
    added = _added(before.log.catalogue, newer, described=described)
    log = before.log if newer is None else _joined(before.log, newer, since, added)
    whole = split_log(log, config)
    split = replace(
        whole,
        validation=_part(whole.validation, since, old=False),
        test=_part(whole.test, since, old=False),
    )
    known = events_before(log, since)
    in_train = pc.index_in(split.train.user_ids, value_set=log.user_ids).to_numpy()
    trained = events_per_user(before.train, split.train)
    old = _old_examples(before, log, since)
    found = Periods(
        since=since,
        split=_described(split, since),
        known=known[in_train],
        trained=np.minimum(trained, split.train.lengths),
        old=old,
        added=added,
    )
    _check_rows(found)
    return found


def _check_untrained(train: BehaviorLog, since: int) -> None:
    late = int((train.timestamps >= since).sum())
    if late:
        raise DataError(
            f"the run was trained on {late:,} events from {iso(since)} on",
            where="update.since",
            expected="a new period that the run has not trained on",
            fix=f"set it after {iso(int(train.timestamps.max()))}, or pass a newer log",
        )


def _added(catalogue: Catalogue, newer: BehaviorLog | None, *, described: bool) -> Catalogue:
    """Items of the newer log, or of the item table beside it, that the catalogue lacks."""
    if newer is None:
        return catalogue.take(np.zeros(len(catalogue), dtype=bool))
    added = newer.catalogue.take(catalogue.find(newer.catalogue.ids) < 0)
    if len(added) and not described and catalogue.texts != catalogue.ids.to_pylist():
        raise DataError(
            f"{len(added):,} items are new and have no text, {added.ids[0].as_py()!r} first",
            where="the newer log",
            expected="a text of every new item: the model knows items by their words",
            fix="pass the newer item table with --items",
        )
    return added


def _joined(old: BehaviorLog, newer: BehaviorLog, since: int, added: Catalogue) -> BehaviorLog:
    """Old events before the moment and newer ones from it on, in the old log's codes."""
    late = newer.to_table()
    late = late.filter(pc.greater_equal(late["timestamp"], since))
    early = old.prefix(events_before(old, since)).to_table()
    table = pa.concat_tables([early, late], promote_options="permissive")
    catalogue = old.catalogue.extend(added)
    joined = BehaviorLog.read(table, catalogue, _users(old, newer), duplicates="keep")
    return joined.align(catalogue, old.code_names.behaviors)


def _users(old: BehaviorLog, newer: BehaviorLog) -> pa.Table | None:
    """Features of the users of both logs, the newer ones where a user is in both; "" if unknown."""
    tables = [
        log.users.add_column(0, "user_id", log.user_ids)
        for log in (newer, old)
        if log.users is not None
    ]
    if not tables:
        return None
    ids = tables[0]["user_id"]
    rest = [table.filter(pc.invert(pc.is_in(table["user_id"], ids))) for table in tables[1:]]
    return pa.concat_tables([tables[0], *rest], promote_options="default")


def _part(rows: EvaluationSet, since: int, *, old: bool) -> EvaluationSet:
    return rows.select((rows.log.timestamps[rows.events] < since) == old)


def _old_examples(before: Split, log: BehaviorLog, since: int) -> EvaluationSet:
    """The model's own examples in the numbers of ``log``, whose old events are the same."""
    test = _part(before.test, since, old=True)
    rows = test if len(test) else _part(before.validation, since, old=True)
    ids = before.log.user_ids.take(pa.array(rows.users))
    users = pc.index_in(ids, value_set=log.user_ids).to_numpy().astype(np.int64)
    return EvaluationSet(log, users, rows.positions)


def _described(split: Split, since: int) -> Split:
    facts = dict(split.description) | {
        "new_since": iso(since),
        "examples": "events of the new period alone",
        "validation_rows": len(split.validation),
        "test_rows": len(split.test),
    }
    return replace(split, description=facts)


def _check_rows(periods: Periods) -> None:
    split = periods.split
    lacking = {
        "an event to train on": int((split.train.lengths - periods.known).clip(0).sum()),
        "a question that validates": len(split.validation),
        "a question that tests": len(split.test),
    }
    for what, count in lacking.items():
        if not count:
            raise EmptyLogError(
                f"the new period (from {iso(periods.since)}) has not {what}",
                where="continual fine-tuning",
                expected="new events before, in and behind the validation cut",
                fix="use a longer newer log, or move data.split's cuts (they are of the whole log)",
            )
    if not len(periods.old):
        raise EmptyLogError(
            f"no question of the run lies before {iso(periods.since)}",
            where="continual fine-tuning",
            expected="an old period in which something was kept back, to see what is forgotten",
            fix="set update.since later, or train the run with data.split on the old period",
        )
