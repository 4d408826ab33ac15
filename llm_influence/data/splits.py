"""Training, validation and test sets of a log, and the evaluation examples.

An example is a user's history and the next event to predict. Every user gives one example, or
several if configured so. An event that is used for training is never predicted.

- leave_one_out: a user's last event is the test, the one before it the validation, the rest is
  training. The history of a test example includes the validation event. With ``held_out`` n, the
  last n events are tests and the n before them validations, each with all earlier events as its
  history.
- global_time: two times cut all histories alike. Events before the first time are training. A
  user's first event from there on is a validation if it lies before the second time. The first
  event from the second time on is a test. Other later events are neither ("rest"), but those before
  a test event belong to its history. With ``examples`` "all", every later event is an example.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence.config.data import SplitConfig
from llm_influence.config.model import FeedbackHeadConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.data.readers import read_table
from llm_influence.data.times import iso, moment_of
from llm_influence.errors import ConfigError, DataError, EmptyLogError, UnknownNameError, unknown
from llm_influence.types import History
from llm_influence.utils import write_text, write_whole

Ints = npt.NDArray[np.int64]
PARTS = ("train", "validation", "test", "rest")
TIES = "events of the same second stay in the order of the file, as written here"


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """N examples: given the first ``positions[n]`` events of a user, which event comes next?

    Attributes:
        log: The full log.
        users: (N,) places in ``log.user_ids``.
        positions: (N,) the place of the target event in its user's history, at least 1.
    """

    log: BehaviorLog
    users: Ints
    positions: Ints

    def __len__(self) -> int:
        """Number of examples N."""
        return len(self.users)

    def history(self, n: int) -> History:
        """The events before the target of example ``n``; the query time is that of the target."""
        user, position = int(self.users[n]), int(self.positions[n])
        moment = int(self.log.timestamps[self.log.offsets[user] + position])
        return replace(self.log.at(user, position), query_time=moment)

    @property
    def events(self) -> Ints:
        """(N,) places of the target events in the arrays of the log."""
        return self.log.offsets[self.users] + self.positions

    @property
    def target_items(self) -> npt.NDArray[np.int32]:
        """(N,) item codes of the target events."""
        return self.log.items[self.events]

    @property
    def target_behaviors(self) -> npt.NDArray[np.int32]:
        """(N,) behaviour codes of the target events."""
        return self.log.behaviors[self.events]

    @property
    def target_values(self) -> npt.NDArray[np.float32]:
        """(N,) values of the target events, NaN where they have none."""
        return self.log.values[self.events]

    def select(self, indices: npt.ArrayLike) -> EvaluationSet:
        """Only the examples at ``indices`` (integers or a (N,) mask), in that order."""
        chosen = np.asarray(indices)
        return EvaluationSet(self.log, self.users[chosen], self.positions[chosen])


@dataclass(frozen=True, eq=False)
class Split:
    """The training events, validation examples and test examples of a log.

    Attributes:
        log: The full log.
        train: The training events, coded as in ``log``; users without any are left out.
        validation: The validation examples.
        test: The test examples.
        description: The kind, the tie rule and the counts, to report beside results.
    """

    log: BehaviorLog
    train: BehaviorLog
    validation: EvaluationSet
    test: EvaluationSet
    description: Mapping[str, object]

    def without_test(self) -> Split:
        """The same split without test examples, for code that must not use any."""
        return replace(self, test=self.test.select(np.empty(0, dtype=np.int64)))

    def parts(self) -> npt.NDArray[np.int8]:
        """(N events,) the part of each event of the log, as a place in `PARTS`."""
        parts = np.full(self.log.num_events, PARTS.index("rest"), dtype=np.int8)
        trained = events_per_user(self.train, self.log)
        parts[self.log.positions() < np.repeat(trained, self.log.lengths)] = PARTS.index("train")
        parts[self.validation.events] = PARTS.index("validation")
        parts[self.test.events] = PARTS.index("test")
        return parts

    def save(self, folder: str | Path) -> None:
        """Write the split, so that every model and every compared library uses the same one.

        `split.parquet` has every event in the pinned order (user_id, item_id, timestamp, behavior,
        value, label if the log has one, position in the history from 0, part), `split.json` the
        description, `users.parquet` the user features if there are any.

        Raises:
            OutputError: A file cannot be written.
        """
        folder = Path(folder)
        names = pa.array(PARTS, pa.string())
        table = self.log.to_table().append_column("position", pa.array(self.log.positions()))
        table = table.append_column("part", names.take(pa.array(self.parts())))
        write_whole(folder / "split.parquet", lambda part: pq.write_table(table, part))
        if self.log.users is not None:
            users = self.log.users.add_column(0, "user_id", self.log.user_ids)
            write_whole(folder / "users.parquet", lambda part: pq.write_table(users, part))
        text = json.dumps(dict(self.description), indent=2, ensure_ascii=False)
        write_text(folder / "split.json", text + "\n")

    @classmethod
    def load(cls, folder: str | Path, catalogue: Catalogue | None = None) -> Split:
        """Read what `save` wrote; the order of the events stays.

        Args:
            folder: The folder.
            catalogue: The items. Default: the ids of the split, without titles.

        Raises:
            DataError: A file is missing or is not a split.
            UnknownNameError: The catalogue lacks an item of the split.
        """
        folder = Path(folder)
        path = folder / "split.parquet"
        table = read_table(path, text=())
        description = _read_description(folder / "split.json")
        if not {"user_id", "item_id", "timestamp", "position", "part"} <= set(table.column_names):
            raise _not_a_split(path)
        log = _pinned_log(table, catalogue, folder, description)
        parts = table["part"].to_numpy()
        trained = np.add.reduceat(parts == "train", log.offsets[:-1], dtype=np.int64)
        examples = EvaluationSet(log, log.rows_of_users(), log.positions())
        return cls(
            log=log,
            train=log.prefix(trained),
            validation=examples.select(parts == "validation"),
            test=examples.select(parts == "test"),
            description=description,
        )


def split_log(log: BehaviorLog, config: SplitConfig | None = None) -> Split:
    """Cut a log into training, validation and test; the module describes the two kinds.

    Args:
        log: The log.
        config: Kind, cuts, and ``min_events``: users with fewer only train. Default: leave-one-out.

    Raises:
        EmptyLogError: No user can be tested, or nothing is left to train on.
        ConfigError: The cut times cannot be read or are out of order.
        UnknownNameError: No event of the log can have one of the ``behaviors``.
    """
    config = config or SplitConfig()
    cut = _leave_one_out if config.kind == "leave_one_out" else _global_time
    trained, validation, test, rule = cut(log, config)
    validation, test = (_with_behaviors(rows, config) for rows in (validation, test))
    if not len(test) or not trained.any():
        lack = "no user can be tested" if not len(test) else "no event is left to train on"
        found = f"{lack}: {len(log):,} users have {log.num_events:,} events"
        expected = f"users with at least {config.min_events} events on both sides of the cut"
        fix = "use a longer log, lower min_events, or move the cut"
        raise EmptyLogError(found, where=f"{config.kind} split", expected=expected, fix=fix)
    train = log.prefix(trained)
    description = _describe(config, rule, log, train, validation, test)
    return Split(log, train, validation, test, description)


def _with_behaviors(rows: EvaluationSet, config: SplitConfig) -> EvaluationSet:
    """The examples whose target has one of the configured behaviours."""
    codes = _behavior_codes(rows.log, config.behaviors, "data.split.behaviors")
    return rows.select(np.isin(rows.target_behaviors, codes)) if codes else rows


def _behavior_codes(log: BehaviorLog, names: Sequence[str], option: str) -> list[int]:
    known = log.code_names.behaviors
    for name in names:
        if name not in known:
            raise unknown(UnknownNameError, "behaviour", name, known, where=option)
    return [known.index(name) for name in names]


def _leave_one_out(
    log: BehaviorLog, config: SplitConfig
) -> tuple[Ints, EvaluationSet, EvaluationSet, str]:
    users, held = np.flatnonzero(log.lengths >= config.min_events), config.held_out
    trained = log.lengths.copy()
    trained[users] -= 2 * held
    tested = log.lengths[users] - held
    last = "event is tested, the one before it validates"
    if held > 1:
        last = f"{held} events are tested, the {held} before them validate"
    validation = _span(log, users, tested - held, tested)
    test = _span(log, users, tested, log.lengths[users])
    return trained, validation, test, f"a user's last {last}, the rest trains"


def _span(log: BehaviorLog, users: Ints, starts: Ints, stops: Ints) -> EvaluationSet:
    """The events of ``users`` from ``starts`` to ``stops``; a first event has no history."""
    starts = starts.clip(1)
    counts = (stops - starts).clip(0)
    first = np.cumsum(counts) - counts
    positions = np.arange(counts.sum()) - np.repeat(first - starts, counts)
    return EvaluationSet(log, np.repeat(users, counts), positions)


def _global_time(
    log: BehaviorLog, config: SplitConfig
) -> tuple[Ints, EvaluationSet, EvaluationSet, str]:
    first = moment_of(config.validation_from, log.timestamps, "validation_from")
    second = moment_of(config.test_from, log.timestamps, "test_from")
    if first >= second:
        found = f"validation_from ({iso(first)}) is not before test_from ({iso(second)})"
        expected, fix = "validation_from < test_from", "move one of them"
        raise ConfigError(found, where="global_time split", expected=expected, fix=fix)
    trained, seen = events_before(log, first), events_before(log, second)
    enough = log.lengths >= config.min_events
    if config.examples == "all":
        users = np.flatnonzero(enough)
        return (
            trained,
            _span(log, users, trained[users], seen[users]),
            _span(log, users, seen[users], log.lengths[users]),
            f"events before {iso(first)} train; those from then on validate if before "
            f"{iso(second)}, those from {iso(second)} on are tested",
        )
    return (
        trained,
        _first_after(log, trained, enough & (trained < seen)),
        _first_after(log, seen, enough & (seen < log.lengths)),
        f"events before {iso(first)} train; a user's first event from then on validates if before "
        f"{iso(second)}, the first from {iso(second)} on is tested",
    )


def _first_after(log: BehaviorLog, before: Ints, which: npt.NDArray[np.bool_]) -> EvaluationSet:
    """The event of ``which`` users after the first ``before`` ones, if there are any."""
    users = np.flatnonzero(which & (before > 0))
    return EvaluationSet(log, users, before[users])


def events_before(log: BehaviorLog, moment: int) -> Ints:
    """(U,) number of each user's events before a time."""
    return np.add.reduceat(log.timestamps < moment, log.offsets[:-1], dtype=np.int64)


def _describe(
    config: SplitConfig,
    rule: str,
    log: BehaviorLog,
    train: BehaviorLog,
    validation: EvaluationSet,
    test: EvaluationSet,
) -> dict[str, object]:
    return {
        "kind": config.kind,
        "rule": rule,
        "ties": TIES,
        "min_events": config.min_events,
        "users": len(log),
        "items": len(log.catalogue),
        "behaviors": list(log.code_names.behaviors),
        "asked_behaviors": config.behaviors or list(log.code_names.behaviors),
        "events": log.num_events,
        "train_events": train.num_events,
        "validation_rows": len(validation),
        "test_rows": len(test),
    }


def events_per_user(part: BehaviorLog, log: BehaviorLog) -> Ints:
    """(U,) number of events in ``part`` of each user of ``log``; 0 for users not in ``part``."""
    places = pa.compute.index_in(log.user_ids, value_set=part.user_ids).fill_null(-1).to_numpy()
    return np.where(places < 0, 0, part.lengths[places])


def _pinned_log(
    table: pa.Table, catalogue: Catalogue | None, folder: Path, description: Mapping[str, object]
) -> BehaviorLog:
    """The log of a saved split, without sorting it again."""
    users = table["user_id"].combine_chunks().dictionary_encode()  # codes by first appearance
    codes = users.indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    if len(starts) != len(users.dictionary):
        raise _not_a_split(folder / "split.parquet")
    ids = table["item_id"].combine_chunks()
    catalogue = catalogue or Catalogue.from_ids(pa.compute.unique(ids).sort())
    features = folder / "users.parquet"
    behaviors = pa.array(description["behaviors"], pa.string())
    return BehaviorLog.from_arrays(
        user_ids=users.dictionary,
        offsets=np.append(starts, len(codes)),
        items=catalogue.index(ids),
        timestamps=table["timestamp"].to_numpy(),
        behaviors=pa.compute.index_in(table["behavior"], value_set=behaviors).to_numpy(),
        behavior_names=behaviors.to_pylist(),
        values=table["value"].to_numpy(),
        labels=table["label"].to_numpy() if "label" in table.column_names else None,
        catalogue=catalogue,
        users=read_table(features, text=()).drop_columns("user_id") if features.exists() else None,
    )


def _read_description(path: Path) -> dict[str, object]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise _not_a_split(path) from error
    if not isinstance(description, dict) or not isinstance(description.get("behaviors"), list):
        raise _not_a_split(path)
    return description


def _not_a_split(path: Path) -> DataError:
    expected, fix = "split.parquet and split.json as Split.save writes them", "save the split again"
    return DataError("not the file of a saved split", where=str(path), expected=expected, fix=fix)


def feedback_labels(log: BehaviorLog, config: FeedbackHeadConfig) -> npt.NDArray[np.float32]:
    """(N,) label of every event of the log for the feedback head, NaN for events without one."""
    labels = log.values if config.label == "value" else log.labels
    if labels is None:
        found, expected = "the log has no column 'label'", "a log with labels"
        fix = "map the column with data.columns, or predict the values with label: value"
        raise ConfigError(found, where="model.feedback_head.label", expected=expected, fix=fix)
    if not config.behaviors:
        return labels
    codes = _behavior_codes(log, config.behaviors, "model.feedback_head.behaviors")
    return np.where(np.isin(log.behaviors, codes), labels, np.float32("nan"))
