"""The task of items that nobody has touched: kept out of training, asked for afterwards.

Items are drawn at random: some to be validated, others to be tested. Training never hears of
either: their events are taken out of the histories, so that the time to the next event is
measured past them, and they are not in the catalogue, not even as wrong answers. After
training they are added by their text alone (`InfluenceModel.add_items`) and every event of one of
them in the later part of a history is a question. All items are candidates, old and new. Histories
of questions are whole: new items that a user has met stand in them, and have to be read by their
text as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet, Split
from llm_influence.errors import EmptyLogError

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
        validation: Questions whose answer is a new item drawn for validation.
        test: Questions whose answer is a new item drawn for the test.
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
    whole = log.align(catalogue.extend(cold), log.vocabulary.behaviors)
    trained = np.floor((1 - later_part) * log.lengths).astype(np.int64)
    group_of_event = group[log.items]
    later = log.positions() >= np.repeat(np.maximum(trained, min_history), log.lengths)
    parts = [_questions(whole, later & (group_of_event == part)) for part in (1, 2)]
    warm = _warm_split(whole, catalogue, group_of_event == 0, trained)
    if not (len(parts[0]) and len(parts[1]) and len(warm.validation)):
        raise EmptyLogError(
            f"{len(parts[0])} questions validate, {len(parts[1])} test",
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


def _questions(log: BehaviorLog, which: npt.NDArray[np.bool_]) -> EvaluationSet:
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
        behavior_names=whole.vocabulary.behaviors,
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
