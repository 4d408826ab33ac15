"""Whether sums of scores foretell what sets of events are worth, on sets no method has seen."""

from __future__ import annotations

import numpy as np

from llm_influence.faithfulness.correlation import spearman
from llm_influence.faithfulness.game import Game, Scored
from llm_influence.faithfulness.metrics.registry import metric
from llm_influence.types import FloatArray


@metric(
    "lds",
    better="high",
    equation="Spearman over held-out random S of f(x_S) and the sum of a over S",
    paper="Park et al. 2023, arXiv:2303.14186; for contexts: Cohen-Wang et al. 2024, "
    "arXiv:2409.00729",
    lies="Sizes of sets vary, so scores that are all positive foretell that more is worth more: "
    "compare with random. A surrogate fitted to such sets is at home here. Where effects "
    "interact, no sum reaches 1.",
)
def lds(game: Game, scored: Scored) -> FloatArray:
    """Linear datamodelling score."""
    sums = [mask @ row for mask, row in zip(game.held_out, scored.scores, strict=True)]
    pairs = zip(game.held_out_values, sums, strict=True)
    return np.array([spearman(value, total) for value, total in pairs])


@metric(
    "infidelity",
    better="low",
    equation="mean over held-out random I of (sum of a over I - (f(x) - f(x without I)))^2",
    paper="Yeh et al. 2019, arXiv:1901.09392",
    lies="Squared log-odds: a few users with large effects rule the mean. Shares have no units "
    "and get none.",
)
def infidelity(game: Game, scored: Scored) -> FloatArray:
    """Squared error of the drop that scores promise; nan for shares."""
    if not scored.in_target_units:
        return np.full(len(scored.scores), np.nan)
    rows = zip(game.held_out, game.held_out_values, game.full, scored.scores, strict=True)
    return np.array(
        [
            np.mean((~kept @ row - (full - value)) ** 2) if len(kept) else np.nan
            for kept, value, full, row in rows
        ]
    )
