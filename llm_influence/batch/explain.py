"""Explanations of every user of a log, or of every example of a split, as Parquet shards."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm_influence import __version__
from llm_influence.attribution.drawn import Drawn
from llm_influence.attribution.explainer import CardOptions, Explainer
from llm_influence.attribution.target import Behavior, Feedback, Item, Target, parse_target
from llm_influence.batch.plan import model_setting, sampled_users, table_digest
from llm_influence.batch.shards import Failures, OnShard, Shards, write_side_tables
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet
from llm_influence.data.times import iso
from llm_influence.errors import ExplanationError, InfluenceError, OutputError
from llm_influence.influence.facts import Key
from llm_influence.influence.influence import Influence, to_arrow
from llm_influence.influence.table_files import OUTCOMES
from llm_influence.modeling.fingerprints import digest, log_fingerprint, model_fingerprint
from llm_influence.types import History
from llm_influence.utils import distributed, write_whole

QUARTILES = ("lower_quartile", "median", "upper_quartile")
ACTUAL = ("item", "behavior", "feedback")
"""Targets that mean the event that followed: its item, its behaviour, or the feedback on it."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The outcome of a batch explanation.

    Attributes:
        folder: Folder of the shards.
        rows: Rows of all shards, one an explained event or player.
        users: Users or examples explained in all.
        explained_now: Explanations that this process computed in this call.
        seconds: Wall-clock seconds of this call.
        failed: Explanations that could not be computed; ``errors.parquet`` lists them.
    """

    folder: Path
    rows: int
    users: int
    explained_now: int
    seconds: float
    failed: int = 0


@distributed()
def explain_batch(
    explainer: Explainer,
    data: BehaviorLog | EvaluationSet,
    out: str | Path,
    *,
    target: Target | None = None,
    shard_size: int = 128,
    run: str = "",
    progress: bool = True,
    query_time: int | None = None,
    withheld: Collection[Key] = (),
    on_shard: OnShard | None = None,
    card_sample: int = 50,
    strict: bool = False,
) -> BatchResult:
    """Explain every user of a log, or every example of a split, into ``out``.

    Run it again after a kill, and it continues. It runs on one process, or on every process of
    ``accelerate launch`` or ``torchrun``. Beside the shards it writes ``items.parquet``,
    ``users.parquet``, and for examples ``outcomes.parquet`` with the event that followed.

    A user that cannot be explained is listed in ``errors.parquet`` and tried again by the next
    call. One job at a time writes into ``out``.

    Args:
        explainer: Model, method and options.
        data: A log, whose whole histories are explained, or examples of a split.
        out: Folder of the shards, ``part-00000.parquet`` and on.
        target: What is explained, such as ``Item("42")``, or its text: ``top1``, ``item:ID``,
            ``behavior:NAME``, ``contrast:A,B``, ``slate:K``, ``feedback:ID``, ``drawn:4,16``, with
            so many explanations of each history; for examples also ``item``, ``behavior`` or
            ``feedback`` of the event that followed. Default: ``top1`` for a log, ``item`` for
            examples.
        shard_size: Explanations of one shard: what a kill may lose. Default 128.
        run: Text for the ``run`` column.
        progress: Whether to show a progress bar.
        query_time: Query time of every user of a log in Unix seconds, for models that read it.
        withheld: Explanations that are not written, such as those of `analysis.review.rejected`.
        on_shard: Called with the path of each shard that this process has written.
        card_sample: The fidelity and the agreement of the quality card are measured for one in so
            many users, at least `LEAST_CARDS`, drawn by the explainer's seed. Gap, standard error
            and evaluations are on every card. 1: all users. Default 50.
        strict: Whether the first user that cannot be explained ends the work. Default: no, unless
            none of the first shard can be explained.

    Raises:
        ExplanationError: A history has events after ``query_time``.
        UnknownNameError: The model does not know an item or behaviour; nothing is computed then.
        OutputError: ``out`` cannot be written, holds another run, or another job writes into it.
    """
    began = time.perf_counter()
    work = _Work.of(explainer, data, target, query_time, card_sample, strict)
    left_out = frozenset(withheld)
    plan = work.plan() | {
        "shard_size": shard_size,
        "withheld": digest(repr(sorted(left_out))) if left_out else None,
    }
    shards = Shards(Path(out), plan, work.count, shard_size)

    def compute(rows: Sequence[int]) -> tuple[pa.Table, Failures]:
        records, failures = work.explain(rows)
        return to_arrow([record for record in records if record.key not in left_out], run), failures

    with shards.locked():
        explained = shards.fill(
            compute,
            name=explainer.method.name,
            prepare=partial(work.write_beside, shards.folder),
            on_shard=on_shard,
            progress=progress,
        )
        written, failed = shards.write_manifest(cards=card_summary(shards.paths))
    seconds = time.perf_counter() - began
    users = work.count // work.draws
    return BatchResult(shards.folder, written, users, explained, seconds, failed)


@dataclass(frozen=True)
class _Work:
    """The histories to explain and the target of each; ``examples`` is None for a whole log."""

    explainer: Explainer
    log: BehaviorLog
    examples: EvaluationSet | None
    target: Target
    query_time: int | None
    carded: frozenset[str] | None  # users whose cards are measured; None: all
    strict: bool

    @classmethod
    def of(
        cls,
        explainer: Explainer,
        data: BehaviorLog | EvaluationSet,
        target: Target | None,
        query_time: int | None,
        card_sample: int,
        strict: bool,
    ) -> _Work:
        model, whole = explainer.model, isinstance(data, BehaviorLog)
        log = data if isinstance(data, BehaviorLog) else data.log
        log = log.align(model.catalogue, model.encoder.vocabulary.behaviors)
        if query_time is not None and whole and query_time < (last := int(log.timestamps.max())):
            raise ExplanationError(
                f"a history has events up to {last - query_time:,} seconds after the query time",
                where="query_time",
                expected=f"a time not before the log's last event ({iso(last)})",
                fix="use a later query time, or explain a log that ends earlier",
            )
        target = target or ("top1" if whole else "item")
        if isinstance(target, str) and (whole or target not in ACTUAL):
            target = parse_target(target)  # refuses a wrong one before anything is computed
        examples, places = None, np.arange(len(log))
        if not isinstance(data, BehaviorLog):
            examples, query_time = EvaluationSet(log, data.users, data.positions), None
            places = np.unique(data.users)
        users = log.user_ids.take(pa.array(places)).to_pylist()
        carded = sampled_users(users, card_sample, explainer.seed)
        return cls(explainer, log, examples, target, query_time, carded, strict)

    @property
    def count(self) -> int:
        """Number of explanations."""
        return self.draws * len(self.log if self.examples is None else self.examples)

    @property
    def draws(self) -> int:
        """Explanations of each history."""
        return self.target.draws if isinstance(self.target, Drawn) else 1

    def plan(self) -> dict[str, object]:
        """Everything that the rows depend on."""
        explainer, method, card = self.explainer, self.explainer.method, self.explainer.card
        examples = self.examples and (self.examples.users, self.examples.positions)
        return {
            "version": __version__,
            "model": model_fingerprint(explainer.model),
            "setting": model_setting(explainer.model),
            "log": log_fingerprint(self.log),
            "user_table": self.log.users and table_digest(self.log.users),
            "items": table_digest(self.log.catalogue.table),
            "cards": None if self.carded is None else digest("\n".join(sorted(self.carded))),
            "method": method.name,
            "removal": explainer.removal if method.removals else "none",
            "options": method.options,
            "seed": explainer.seed,
            "players": str(explainer.players),
            "dtype": explainer.dtype,
            "fidelity_masks": card.fidelity_masks,
            "agree_with": card.agree_with.name if card.agree_with else "",
            "target": str(self.target),
            "users": self.count,
            "query_time": self.query_time,
            "examples": examples and digest(*(column.astype(np.int64) for column in examples)),
        }

    def explain(self, rows: Sequence[int]) -> tuple[list[Influence], Failures]:
        """Explanations of these rows in order, and the rows that cannot be explained.

        Rows with the same target are explained together.
        """
        together: dict[tuple[Target, bool], list[int]] = defaultdict(list)
        for row in rows:
            measured = self.carded is None or self._user(row) in self.carded
            together[self._target(row), measured].append(row)
        influences: dict[int, Influence] = {}
        failures: dict[int, tuple[str, InfluenceError]] = {}
        for (target, measured), same in together.items():
            explainer = copy(self.explainer)
            if not measured:
                explainer.card = CardOptions(0, None)
            self._explain(explainer, target, same, influences, failures)
        return [influences[row] for row in rows if row in influences], failures

    def _explain(
        self,
        explainer: Explainer,
        target: Target,
        rows: list[int],
        influences: dict[int, Influence],
        failures: dict[int, tuple[str, InfluenceError]],
    ) -> None:
        """Explain these rows; halves of them after an error, until its row stands alone."""
        try:
            records = explainer.explain([self._history(row) for row in rows], target)
        except InfluenceError as error:
            if self.strict or isinstance(error, OutputError):
                raise
            if len(rows) == 1:
                failures[rows[0]] = (self._user(rows[0]), error)
                return
            middle = len(rows) // 2
            for half in (rows[:middle], rows[middle:]):
                self._explain(explainer, target, half, influences, failures)
        else:
            influences |= dict(zip(rows, records, strict=True))

    def _user(self, row: int) -> str:
        place = row // self.draws
        place = place if self.examples is None else int(self.examples.users[place])
        user: str = self.log.user_ids[place].as_py()
        return user

    def _history(self, row: int) -> History:
        place = row // self.draws
        if self.examples is None:
            return replace(self.log.at(place), query_time=self.query_time)
        return self.examples.history(place)

    def _target(self, row: int) -> Target:
        if isinstance(self.target, Drawn):
            return replace(self.target, number=row % self.draws)
        if self.examples is None or self.target not in ACTUAL:
            return self.target
        names, place = self.log.code_names, self.examples.events[row]
        item = names.items[int(self.log.items[place])].as_py()
        behavior = names.behaviors[int(self.log.behaviors[place])]
        if self.target == "feedback":
            return Feedback(item, behavior)
        return Item(item) if self.target == "item" else Behavior(behavior)

    def write_beside(self, folder: Path) -> None:
        write_side_tables(self.log, folder)
        if self.examples is not None:
            table = outcomes(self.examples)
            write_whole(folder / OUTCOMES, partial(pq.write_table, table))


def card_summary(paths: Sequence[Path]) -> dict[str, object]:
    """Quality of the explanations in these shards: counts, and quartiles of fidelity and gap."""
    columns: dict[str, list[np.ndarray]] = {"lds": [], "completeness_gap": []}
    for path in paths:
        table = pq.ParquetFile(path).read(columns=["player", *columns])
        table = table.filter(pc.equal(table["player"], 0))
        for name, parts in columns.items():
            parts.append(table[name].to_numpy().astype(np.float64))
    summary: dict[str, object] = {}
    for name, parts in columns.items():
        values = np.concatenate(parts) if parts else np.empty(0)
        known = values[np.isfinite(values)]
        summary["explanations"] = len(values)
        summary[name] = {"measured": len(known)} | (
            dict(zip(QUARTILES, map(float, np.quantile(known, (0.25, 0.5, 0.75))), strict=True))
            if len(known)
            else {}
        )
    return summary


def outcomes(examples: EvaluationSet) -> pa.Table:
    """The event that followed, one row an example.

    Columns: `user_id`, `before` (events before the example), and of the event that followed
    `item_id`, `behavior`, `timestamp`, `value` and `label` (null where there is none).
    """
    log, events = examples.log, examples.events
    names = pa.array(log.code_names.behaviors, pa.string())
    labels = np.full(len(events), np.nan) if log.labels is None else log.labels[events]
    return pa.table(
        {
            "user_id": log.user_ids.take(pa.array(examples.users)),
            "before": pa.array(examples.positions, pa.int64()),
            "item_id": log.code_names.items.take(pa.array(examples.target_items)),
            "behavior": names.take(pa.array(examples.target_behaviors)),
            "timestamp": pa.array(log.timestamps[events], pa.int64()),
            "value": pa.array(examples.target_values, pa.float64(), from_pandas=True),
            "label": pa.array(labels, pa.float64(), from_pandas=True),
        }
    )
