"""Explain every user of a log into Parquet shards.

Users are cut into shards by their order in the log. Each process takes missing shards, writes each
one whole or not at all, and the last word is a manifest. A shard is computed the same way whoever
computes it, so any number of processes, and any number of kills, gives the same rows.

Explain the examples of a split: the history before each, and what came after it.

Where `explain_batch` explains what every user will do next, this explains examples whose answers
are known. ``outcomes.parquet`` beside the shards says them, so that an analysis can ask what made
the model expect what did happen.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from tqdm import tqdm

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.target import Behavior, Feedback, Item, Target, parse_target
from llm_influence.batch.shards import (
    SHARD,
    Plan,
    examples_fingerprint,
    keys_fingerprint,
    write_manifest,
    write_side_tables,
)
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet, iso
from llm_influence.errors import ExplanationError
from llm_influence.influence.facts import Key
from llm_influence.influence.influence import Influence, to_arrow
from llm_influence.influence.table_files import OUTCOMES, write_table
from llm_influence.modeling.backbone import on_cpu
from llm_influence.utils import write_whole


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch explanation left behind.

    Attributes:
        folder: Where the shards lie.
        rows: Rows of all shards, one an explained event or player.
        users: Users explained in all.
        explained_now: Users that this process explained itself, the rest was there already or
            is another process's.
        seconds: Wall-clock seconds of this call.
    """

    folder: Path
    rows: int
    users: int
    explained_now: int
    seconds: float


def explain_batch(
    explainer: Explainer,
    log: BehaviorLog,
    out: str | Path,
    *,
    target: str = "top1",
    shard_size: int = 128,
    run: str = "",
    progress: bool = True,
    query_time: int | None = None,
    withheld: Collection[Key] = (),
) -> BatchResult:
    """Explain every user of ``log`` into ``out``; run again after a kill, it goes on.

    Runs alone, or on every process of ``accelerate launch`` or ``torchrun``.

    Args:
        explainer: Model, method and options.
        log: Whose histories; items and behaviours must be known to the model.
        out: Folder of the shards, ``part-00000.parquet`` and on (schema: `influence.table`), with
            ``items.parquet`` and ``users.parquet`` beside them (`jobs.side_tables`).
        target: As on the command line: ``top1``, ``item:ID``, ``behavior:NAME``, ``contrast:A,B``,
            ``slate:K``, ``feedback:ID``.
        shard_size: Users of a shard: what a kill may lose.
        run: Name written into the ``run`` column.
        progress: Show a bar with the rate.
        query_time: Unix seconds at which every user is asked what comes next, for models with "when";
            default: not known.
        withheld: Explanations that are not to be written: those that people rejected
            (`analysis.review.rejected`).

    Raises:
        ExplanationError: A history goes on after ``query_time``.
        UnknownNameError: The log has an item or behaviour that the model does not know; nothing
            is computed then.
        OutputError: ``out`` cannot be written, or holds another run.
    """
    model = explainer.model
    log = log.align(model.catalogue, model.encoder.vocabulary.behaviors)
    wanted = parse_target(target)
    plan = Plan.of(explainer, log, target, shard_size)
    if query_time is not None:
        _check_moment(log, query_time)
        plan = replace(plan, query_time=query_time)
    return write_shards(
        plan,
        Path(out),
        lambda rows: explainer.explain(
            [replace(log.at(row), query_time=query_time) for row in rows], wanted
        ),
        partial(write_side_tables, log),
        run=run,
        progress=progress,
        withheld=withheld,
    )


def _check_moment(log: BehaviorLog, moment: int) -> None:
    last = int(log.timestamps.max())
    if moment < last:
        raise ExplanationError(
            f"a history goes on for {last - moment:,} seconds after the moment asked",
            where="query_time",
            expected=f"a moment not before the log's last event ({iso(last)})",
            fix="ask later, or explain a log that ends earlier",
        )


def write_shards(
    plan: Plan,
    folder: Path,
    explain: Callable[[range], list[Influence]],
    beside: Callable[[Path], None],
    *,
    run: str,
    progress: bool,
    withheld: Collection[Key] = (),
) -> BatchResult:
    """Write the missing shards of a plan, each process its own.

    Args:
        plan: What the folder is to hold.
        folder: Of the shards.
        explain: Explains these rows of the plan, in order.
        beside: Writes what stands beside the shards.
        run: Name written into the ``run`` column.
        progress: Show a bar with the rate.
        withheld: Explanations that are not to be written.

    Raises:
        OutputError: The folder cannot be written, or holds another run.
    """
    begun, state = time.perf_counter(), PartialState(cpu=on_cpu())
    left_out = frozenset(withheld)
    plan = replace(plan, withheld=keys_fingerprint(left_out))
    if state.is_main_process:
        plan.claim(folder)
        _sweep(folder)
        beside(folder)
    state.wait_for_everyone()
    missing = [n for n in range(len(plan.shards)) if not _shard_path(folder, n).exists()]
    mine = missing[state.process_index :: state.num_processes]
    state.wait_for_everyone()  # everyone has counted before anyone writes
    explained = 0
    with tqdm(
        total=sum(len(plan.shards[n]) for n in mine),
        unit="user",
        desc=f"{plan.method}",
        disable=not (progress and state.is_main_process),
    ) as bar:
        for number in mine:
            rows = plan.shards[number]
            shown = [record for record in explain(rows) if record.key not in left_out]
            write_table(to_arrow(shown, run), _shard_path(folder, number))
            explained += len(rows)
            bar.update(len(rows))
    state.wait_for_everyone()
    counts = {path.name: pq.read_metadata(path).num_rows for path in _shard_paths(folder, plan)}
    if state.is_main_process:
        write_manifest(folder, plan, counts)
    state.wait_for_everyone()
    seconds = time.perf_counter() - begun
    return BatchResult(folder, sum(counts.values()), plan.users, explained, seconds)


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"{SHARD}{number:05d}.parquet"


def _shard_paths(folder: Path, plan: Plan) -> list[Path]:
    return [_shard_path(folder, number) for number in range(len(plan.shards))]


def _sweep(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for path in folder.glob(f".{SHARD}*.tmp"):
        path.unlink()


CAME = ("item", "behavior", "feedback")
"""Targets that mean what came: its item, its behaviour, or the feedback on it."""


def explain_examples(
    explainer: Explainer,
    examples: EvaluationSet,
    out: str | Path,
    *,
    target: str = "item",
    shard_size: int = 128,
    run: str = "",
    progress: bool = True,
    withheld: Collection[Key] = (),
) -> BatchResult:
    """Explain every question into ``out``; run again after a kill, it goes on.

    Args:
        explainer: Model, method and options.
        examples: Of a split; items and behaviours of their log must be known to the model.
        out: As of `explain_batch`, with ``outcomes.parquet`` beside: `user_id`, `before` (events
            before the question), and of the event that came `item_id`, `behavior`, `timestamp`,
            `value` and `label` (null where there is none).
        target: One of `CAME`, of each question its own; or one for all as in `explain_batch`.
        shard_size: Examples of a shard.
        run: Name written into the ``run`` column.
        progress: Show a bar with the rate.
        withheld: As of `explain_batch`.

    Raises:
        UnknownNameError: An item or behaviour is not known to the model.
        OutputError: ``out`` cannot be written, or holds another run.
    """
    model = explainer.model
    log = examples.log.align(model.catalogue, model.encoder.vocabulary.behaviors)
    rows = EvaluationSet(log, examples.users, examples.positions)
    plan = Plan.of(explainer, log, target, shard_size)
    plan = replace(plan, examples=examples_fingerprint(rows), users=len(rows))
    return write_shards(
        plan,
        Path(out),
        partial(_explain, explainer, rows, target),
        partial(_beside, rows),
        run=run,
        progress=progress,
        withheld=withheld,
    )


def _explain(
    explainer: Explainer, examples: EvaluationSet, target: str, rows: range
) -> list[Influence]:
    """These examples in order; those with the same target together."""
    together = defaultdict(list)
    for row in rows:
        together[_asked(examples, row, target)].append(row)
    found: dict[int, Influence] = {}
    for wanted, same in together.items():
        records = explainer.explain([examples.history(row) for row in same], wanted)
        found |= dict(zip(same, records, strict=True))
    return [found[row] for row in rows]


def _asked(examples: EvaluationSet, row: int, target: str) -> Target:
    if target not in CAME:
        return parse_target(target)
    names, place = examples.log.code_names, examples.events[row]
    item = names.items[int(examples.log.items[place])].as_py()
    behavior = names.behaviors[int(examples.log.behaviors[place])]
    if target == "feedback":
        return Feedback(item, behavior)
    return Item(item) if target == "item" else Behavior(behavior)


def _beside(examples: EvaluationSet, folder: Path) -> None:
    write_side_tables(examples.log, folder)
    write_whole(folder / OUTCOMES, partial(pq.write_table, outcomes(examples)))


def outcomes(examples: EvaluationSet) -> pa.Table:
    """What came, one row a question; the columns are those of `explain_examples`."""
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
