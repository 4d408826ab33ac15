"""Explain the questions of a split: the history before each, and what came after it.

Where `explain_batch` explains what every user will do next, this explains questions whose answers
are known. ``outcomes.parquet`` beside the shards says them, so that an analysis can ask what made
the model expect what did happen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.targets import Behavior, Feedback, Item, Target, parse_target
from llm_influence.data.splits import EvaluationSet
from llm_influence.files import write_whole
from llm_influence.influence.parquet import OUTCOMES
from llm_influence.influence.record import Influence, Key
from llm_influence.jobs.batch import BatchResult, write_shards
from llm_influence.jobs.plan import Plan, questions_fingerprint
from llm_influence.jobs.side_tables import write_side_tables

CAME = ("item", "behavior", "feedback")
"""Targets that mean what came: its item, its behaviour, or the feedback on it."""


def explain_questions(
    explainer: Explainer,
    questions: EvaluationSet,
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
        questions: Of a split; items and behaviours of their log must be known to the model.
        out: As of `explain_batch`, with ``outcomes.parquet`` beside: `user_id`, `before` (events
            before the question), and of the event that came `item_id`, `behavior`, `timestamp`,
            `value` and `label` (null where there is none).
        target: One of `CAME`, of each question its own; or one for all as in `explain_batch`.
        shard_size: Questions of a shard.
        run: Name written into the ``run`` column.
        progress: Show a bar with the rate.
        withheld: As of `explain_batch`.

    Raises:
        UnknownNameError: An item or behaviour is not known to the model.
        OutputError: ``out`` cannot be written, or holds another run.
    """
    model = explainer.model
    log = questions.log.align(model.catalogue, model.encoder.lexicon.behaviors)
    rows = EvaluationSet(log, questions.users, questions.positions)
    plan = Plan.of(explainer, log, target, shard_size)
    plan = replace(plan, questions=questions_fingerprint(rows), users=len(rows))
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
    explainer: Explainer, questions: EvaluationSet, target: str, rows: range
) -> list[Influence]:
    """These questions in order; those with the same target together."""
    together = defaultdict(list)
    for row in rows:
        together[_asked(questions, row, target)].append(row)
    found: dict[int, Influence] = {}
    for wanted, same in together.items():
        records = explainer.explain([questions.history(row) for row in same], wanted)
        found |= dict(zip(same, records, strict=True))
    return [found[row] for row in rows]


def _asked(questions: EvaluationSet, row: int, target: str) -> Target:
    if target not in CAME:
        return parse_target(target)
    names, place = questions.log.vocabulary, questions.events[row]
    item = names.items[int(questions.log.items[place])].as_py()
    behavior = names.behaviors[int(questions.log.behaviors[place])]
    if target == "feedback":
        return Feedback(item, behavior)
    return Item(item) if target == "item" else Behavior(behavior)


def _beside(questions: EvaluationSet, folder: Path) -> None:
    write_side_tables(questions.log, folder)
    write_whole(folder / OUTCOMES, partial(pq.write_table, outcomes(questions)))


def outcomes(questions: EvaluationSet) -> pa.Table:
    """What came, one row a question; the columns are those of `explain_questions`."""
    log, events = questions.log, questions.events
    names = pa.array(log.vocabulary.behaviors, pa.string())
    labels = np.full(len(events), np.nan) if log.labels is None else log.labels[events]
    return pa.table(
        {
            "user_id": log.user_ids.take(pa.array(questions.users)),
            "before": pa.array(questions.positions, pa.int64()),
            "item_id": log.vocabulary.items.take(pa.array(questions.target_items)),
            "behavior": names.take(pa.array(questions.target_behaviors)),
            "timestamp": pa.array(log.timestamps[events], pa.int64()),
            "value": pa.array(questions.target_values, pa.float64(), from_pandas=True),
            "label": pa.array(labels, pa.float64(), from_pandas=True),
        }
    )
