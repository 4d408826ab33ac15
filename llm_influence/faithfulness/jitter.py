"""Histories whose gaps are a little off: the same events in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llm_influence.attribution.draws import user_generator
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import History

SPREAD = 0.1
"""Standard deviation of the logarithm of the factor that a gap is multiplied with."""
STREAM = 4
"""Keeps these draws apart from others of the same seed and user."""


def jitter_gaps(history: History, draw_number: int, seed: int) -> History:
    """The history with every gap multiplied by ``exp(SPREAD z)``, z normal; gaps of 0 stay 0.

    The last event keeps its time: the past moves, not the present, nor the moment of the question.
    """
    draw = user_generator(seed, history.user_id, STREAM, draw_number)
    gaps = np.diff(history.timestamps).astype(np.float64)
    moved = np.rint(gaps * np.exp(SPREAD * draw.standard_normal(len(gaps)))).astype(np.int64)
    back = np.concatenate([np.cumsum(moved[::-1])[::-1], [0]]) if len(history) else moved
    return replace(history, timestamps=history.timestamps[-1:] - back)


def jittered(
    model: InfluenceModel, histories: Sequence[History], draws: int, seed: int
) -> list[list[History]]:
    """``draws`` jitters of every history; none for a template that reads no gap.

    None either for one that reads the hour or the weekday: a gap that is a little off would move an
    event to another hour, and that is not the same history any more.
    """
    said = model.encoder.template.fields
    if "gap" not in said or said & {"hour", "weekday"}:
        return []
    return [[jitter_gaps(history, n, seed) for history in histories] for n in range(draws)]
