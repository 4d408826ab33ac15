"""Influence tables of generated logs: the exact truth, and explanations of a trained model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.target import Contrast
from llm_influence.batch.shards import write_side_tables
from llm_influence.datasets.planted import PlantedTruth
from llm_influence.influence.facts import USER, Player, QualityCard
from llm_influence.influence.influence import Influence, to_arrow
from llm_influence.influence.table_files import write_table

EXACT = "true_influence"
"""The method that the tables of the truth name."""


def write_truth(truth: PlantedTruth, folder: Path) -> Path:
    """The true influence of each event as an influence table, with the items beside it."""
    return _write(list(_exact(truth)), truth, folder)


def write_explained(
    truth: PlantedTruth, explainer: Explainer, folder: Path, later: Explainer | None = None
) -> Path:
    """The same histories and examples, explained by a model.

    Args:
        truth: The histories and examples.
        explainer: Of the model.
        folder: For the tables.
        later: Explains the histories that end after the change of the process; default:
            ``explainer``.
    """
    everyone = range(len(truth.log))
    changed = [user for user in everyone if later is not None and is_changed(truth, user)]
    found = _explained(truth, explainer, sorted(set(everyone) - set(changed)))
    if later is not None:
        found |= _explained(truth, later, changed)
    return _write([found[user] for user in everyone], truth, folder)


def is_changed(truth: PlantedTruth, user: int) -> bool:
    """Whether a user's history ends after the change of the process."""
    drift = truth.process.drift
    return drift is not None and int(truth.history(user).timestamps[-1]) >= drift.date


def _explained(truth: PlantedTruth, explainer: Explainer, users: list[int]) -> dict[int, Influence]:
    ids, together = truth.process.item_ids.to_pylist(), defaultdict(list)
    for user in users:
        together[_question(truth, ids, user)].append(user)
    found: dict[int, Influence] = {}
    for question, same in together.items():
        influences = explainer.explain([truth.history(user) for user in same], question)
        found |= dict(zip(same, influences, strict=True))
    return found


def _exact(truth: PlantedTruth) -> Iterator[Influence]:
    ids, titles = truth.process.item_ids.to_pylist(), truth.log.catalogue.titles
    named = dict(zip(ids, titles, strict=True))
    for user, scores in enumerate(truth.influence):
        history, question = truth.history(user), _question(truth, ids, user)
        pair = (question.chosen, question.other)
        chosen, other = truth.targets[user], truth.others[user]
        players = None
        if truth.log.users is not None:  # what the user's feature adds is one more score
            shift = truth.process.shift_of(history.user) + np.zeros(len(ids))
            scores = np.append(scores, (shift[chosen] - shift[other]) / truth.process.temperature)
            players = [*(Player(event) for event in range(len(history))), USER]
        yield Influence(
            user_id=history.user_id,
            events=tuple(history.events(named)),
            values=scores,
            players=players,
            prompt_score=0.0,
            target="contrast",
            target_id=" over ".join(pair),
            target_name=" over ".join(named[item] for item in pair),
            base_value=0.0,
            full_value=float(scores.sum()),
            prediction=float(np.exp(truth.process.log_probabilities(history)[chosen])),
            quality=QualityCard(EXACT, "drop", "target", 0.0, evaluations=0, seed=0, left_out=0),
        )


def _question(truth: PlantedTruth, ids: list[str], user: int) -> Contrast:
    if truth.others is None:
        raise ValueError("a planted log whose target is a contrast is needed")
    return Contrast(ids[truth.targets[user]], ids[truth.others[user]])


def _write(records: list[Influence], truth: PlantedTruth, folder: Path) -> Path:
    write_table(to_arrow(records, "planted"), folder / "part-00000.parquet")
    write_side_tables(truth.log, folder)
    return folder
