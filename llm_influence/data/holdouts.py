"""Splits for two more tasks: items without history, and a new period after an old one.

New items. Some items are drawn at random and kept out of training, for validation or test. Their
events are removed from the histories, so the time to the next event skips them. They are not in the
catalogue either, not even as wrong answers. After training they are added with their text alone
(`InfluenceModel.add_items`). Every event of a new item late in a history is an example. All items
are candidates, and the histories of examples are whole: they include other new items.

Old and new period. One time separates the events that the model was trained on from newer ones,
which come from a newer log or from the rest of the same log. Examples of the new period are those
of the split of the whole log (`split_log`) with a new target. Examples of the old period are the
model's own test examples, or its validation examples if no test target is that old.
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
    split_log,
)
from llm_influence.data.times import iso
from llm_influence.errors import ConfigError, DataError, EmptyLogError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class NewItemSplit:
    """Training without some items, and examples of these.

    Attributes:
        old: The split over the old items alone. Its validation and test targets are the first and
            second old item after the training part of each history, so that an epoch can be chosen
            without any new item.
        new_items: The new items, for `InfluenceModel.add_items`.
        log: The whole log; its catalogue has the old items first, then the new ones.
        validation: Examples whose target is a new item drawn for validation.
        test: Examples whose target is a new item drawn for the test.
    """

    old: Split
    new_items: Catalogue
    log: BehaviorLog
    validation: EvaluationSet
    test: EvaluationSet


def split_new_items(
    log: BehaviorLog,
    *,
    validation_items: float = 0.05,
    test_items: float = 0.1,
    later_part: float = 0.2,
    min_history: int = 5,
    seed: int = 0,
) -> NewItemSplit:
    """Keep some items of a log out of training.

    Args:
        log: All events.
        validation_items: Share of the occurring items kept out for validation.
        test_items: Share of the occurring items kept out for the test.
        later_part: Share of each history, at its end, that is not trained on and gives examples.
        min_history: Smallest number of events before a target.
        seed: Seed of the draw of items.
    """
    group = _draw(log, validation_items, test_items, seed)
    old, new = np.flatnonzero(group == 0), np.flatnonzero(group > 0)
    catalogue, new_items = log.catalogue.take(old), log.catalogue.take(new)
    whole = log.align(catalogue.extend(new_items), log.code_names.behaviors)
    trained = np.floor((1 - later_part) * log.lengths).astype(np.int64)
    group_of_event = group[log.items]
    later = log.positions() >= np.repeat(np.maximum(trained, min_history), log.lengths)
    parts = [_examples(whole, later & (group_of_event == part)) for part in (1, 2)]
    old_items = _old_item_split(whole, catalogue, group_of_event == 0, trained)
    if not (len(parts[0]) and len(parts[1]) and len(old_items.validation)):
        found = f"{len(parts[0])} examples validate, {len(parts[1])} test"
        expected = "at least one of each, and old items after the training part"
        fix = "keep more items out, lower min_history, or use a longer log"
        raise EmptyLogError(found, where="split_new_items", expected=expected, fix=fix)
    return NewItemSplit(old_items, new_items, whole, *parts)


def _draw(log: BehaviorLog, validation: float, test: float, seed: int) -> npt.NDArray[np.int8]:
    """(I,) 0 for an old item, 1 for a validation item, 2 for a test item."""
    occurring = np.unique(log.items)
    order = np.random.default_rng(seed).permutation(occurring)
    first = round(validation * len(order))
    group = np.zeros(len(log.catalogue), dtype=np.int8)
    group[order[:first]] = 1
    group[order[first : first + round(test * len(order))]] = 2
    return group


def _examples(log: BehaviorLog, which: npt.NDArray[np.bool_]) -> EvaluationSet:
    return EvaluationSet(log, log.rows_of_users()[which], log.positions()[which])


def _old_item_split(
    whole: BehaviorLog, catalogue: Catalogue, is_old: npt.NDArray[np.bool_], trained: Ints
) -> Split:
    """The split of the old items, as if the events of new ones had not happened."""
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
    places = [np.flatnonzero((trains > 0) & (trains + ahead < log.lengths)) for ahead in (0, 1)]
    validation, test = (
        EvaluationSet(log, rows, trains[rows] + ahead) for ahead, rows in enumerate(places)
    )
    description = {
        "kind": "new_items",
        "rule": "old items alone; the first and second one after the training part are the targets",
        "items": len(catalogue),
        "train_events": int(trains.sum()),
        "validation_rows": len(validation),
        "test_rows": len(test),
    }
    return Split(log, log.prefix(trains), validation, test, description)


@dataclass(frozen=True, eq=False)
class PeriodSplit:
    """The old and the new period of one log, with the codes of the model.

    Attributes:
        since: Start of the new period, Unix seconds.
        split: The examples of the new period; all events before them are training.
        known: (users of ``split.train``) number of each user's events in the old period.
        trained: (the same users) number of these that the model was trained on.
        old: The examples of the old period, over ``split.log``.
        added: Items that are new to the model; the last ones of the log's catalogue.
    """

    since: int
    split: Split
    known: Ints
    trained: Ints
    old: EvaluationSet
    added: Catalogue


def split_periods(
    before: Split,
    newer: BehaviorLog | None,
    since: int | None,
    config: SplitConfig,
    *,
    described: bool = True,
) -> PeriodSplit:
    """Join a model's log with a newer one and make examples of both periods.

    Args:
        before: The split that the model was trained on, over the model's own catalogue.
        newer: The newer log, used from ``since`` on; the model's log is used before. None: the
            model's log is used for both periods.
        since: Unix seconds. Default: the second after the last event of the model's log.
        config: The split of the whole log, for the examples of the new period.
        described: Whether the newer log has an item table, so that new items have texts.

    Raises:
        ConfigError: There is neither a newer log nor ``since``.
        DataError: The model was trained on events from ``since`` on, or new items have no text.
        UnknownNameError: A behaviour is unknown to the model.
        EmptyLogError: The new period has no training event, validation or test example, or the
            old one has no example.
    """
    if since is None:
        if newer is None:
            found = "there is neither a newer log nor a start of the new period"
            fix = "pass --log FILE, or --update.since TIME"
            raise ConfigError(found, where="update.since", expected="one of them", fix=fix)
        since = int(before.log.timestamps.max()) + 1
    _check_untrained(before.train, since)
    added = _added(before.log.catalogue, newer, described=described)
    log = before.log if newer is None else _joined(before.log, newer, since, added)
    whole = split_log(log, config)
    validation, test = (_part(rows, since, old=False) for rows in (whole.validation, whole.test))
    split = replace(whole, validation=validation, test=test)
    known = events_before(log, since)
    in_train = pc.index_in(split.train.user_ids, value_set=log.user_ids).to_numpy()
    trained = events_per_user(before.train, split.train)
    old = _old_examples(before, log, since)
    split, trained = _described(split, since), np.minimum(trained, split.train.lengths)
    periods = PeriodSplit(since, split, known[in_train], trained, old, added)
    _check_rows(periods)
    return periods


def _check_untrained(train: BehaviorLog, since: int) -> None:
    late = int((train.timestamps >= since).sum())
    if late:
        found = f"the run was trained on {late:,} events from {iso(since)} on"
        expected = "a new period without training events"
        fix = f"set it after {iso(int(train.timestamps.max()))}, or pass a newer log"
        raise DataError(found, where="update.since", expected=expected, fix=fix)


def _added(catalogue: Catalogue, newer: BehaviorLog | None, *, described: bool) -> Catalogue:
    """Items of the newer log, or of the item table beside it, that the catalogue lacks."""
    if newer is None:
        return catalogue.take(np.zeros(len(catalogue), dtype=bool))
    added = newer.catalogue.take(catalogue.find(newer.catalogue.ids) < 0)
    if len(added) and not described and catalogue.texts != catalogue.ids.to_pylist():
        found = f"{len(added):,} items are new and have no text, {added.ids[0].as_py()!r} first"
        expected = "a text for every new item: the model represents items by their text"
        fix = "pass the newer item table with --items"
        raise DataError(found, where="the newer log", expected=expected, fix=fix)
    return added


def _joined(old: BehaviorLog, newer: BehaviorLog, since: int, added: Catalogue) -> BehaviorLog:
    """Old events before a time and newer ones from it on, in the old log's codes."""
    late = newer.to_table()
    late = late.filter(pc.greater_equal(late["timestamp"], since))
    early = old.prefix(events_before(old, since)).to_table()
    table = pa.concat_tables([early, late], promote_options="permissive")
    catalogue = old.catalogue.extend(added)
    joined = BehaviorLog.read(table, catalogue, _users(old, newer), duplicates="keep")
    return joined.align(catalogue, old.code_names.behaviors)


def _users(old: BehaviorLog, newer: BehaviorLog) -> pa.Table | None:
    """User features of both logs, the newer ones for users of both; "" if unknown."""
    both = [(log.users, log.user_ids) for log in (newer, old)]
    tables = [users.add_column(0, "user_id", ids) for users, ids in both if users is not None]
    if not tables:
        return None
    ids = tables[0]["user_id"]
    rest = [table.filter(pc.invert(pc.is_in(table["user_id"], ids))) for table in tables[1:]]
    return pa.concat_tables([tables[0], *rest], promote_options="default")


def _part(rows: EvaluationSet, since: int, *, old: bool) -> EvaluationSet:
    return rows.select((rows.log.timestamps[rows.events] < since) == old)


def _old_examples(before: Split, log: BehaviorLog, since: int) -> EvaluationSet:
    """The model's own examples as places in ``log``, whose old events are the same."""
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


def _check_rows(periods: PeriodSplit) -> None:
    split = periods.split
    lacking = {
        "training event": int((split.train.lengths - periods.known).clip(0).sum()),
        "validation example": len(split.validation),
        "test example": len(split.test),
    }
    for what, count in lacking.items():
        if not count:
            found = f"the new period (from {iso(periods.since)}) has no {what}"
            expected = "new events before, in and after the validation part"
            fix = "use a longer newer log, or move the cuts of data.split"
            raise EmptyLogError(found, where="continual fine-tuning", expected=expected, fix=fix)
    if not len(periods.old):
        found = f"no example of the run lies before {iso(periods.since)}"
        expected = "an old period with examples, to measure forgetting"
        fix = "set update.since later, or train the run with data.split on the old period"
        raise EmptyLogError(found, where="continual fine-tuning", expected=expected, fix=fix)
