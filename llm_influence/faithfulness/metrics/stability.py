"""How much scores move when the history hardly does, and when the model is scrambled."""

from __future__ import annotations

import numpy as np

from llm_influence.faithfulness.correlation import spearman
from llm_influence.faithfulness.game import Game, Scored
from llm_influence.faithfulness.metrics.registry import metric
from llm_influence.types import FloatArray

SENSITIVITY, RANDOMISATION = "sensitivity", "randomisation"


@metric(
    SENSITIVITY,
    better="low",
    equation="max over jittered gaps of |a' - a| / |a|, Euclidean norms",
    paper="max-sensitivity: Yeh et al. 2019, arXiv:1901.09392",
    lies="Scores that do not read the model are the most stable of all. It counts the model's own "
    "change of mind as the method's. Templates without a gap have none, nor those that "
    "read the hour or the weekday.",
)
def sensitivity(game: Game, scored: Scored) -> FloatArray:
    """Largest relative change of the scores; nan where they are all zero or none were jittered."""
    norms = np.array([np.linalg.norm(row) for row in scored.scores])
    if not scored.jittered:
        return np.full(len(norms), np.nan)
    changes = [
        [np.linalg.norm(b - a) for a, b in zip(scored.scores, draw, strict=True)]
        for draw in scored.jittered
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(norms > 0, np.max(changes, axis=0) / norms, np.nan)


@metric(
    RANDOMISATION,
    better="zero",
    equation="Spearman of the scores and those of the model with scrambled weights",
    paper="Adebayo et al. 2018, arXiv:1810.03292",
    lies="Near zero is necessary, not sufficient: noise that reads the model passes. One that "
    "stays near 1 (recency, random draws of the user) does not read the model.",
)
def randomisation(game: Game, scored: Scored) -> FloatArray:
    """Rank correlation that should be lost with the weights; see `sanity.scrambled`."""
    if scored.scrambled is None:
        return np.full(len(scored.scores), np.nan)
    pairs = zip(scored.scores, scored.scrambled, strict=True)
    return np.array([spearman(trained, scrambled) for trained, scrambled in pairs])
