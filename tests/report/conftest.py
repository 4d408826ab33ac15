"""Explanations by several methods, made by hand."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from llm_influence.influence.facts import QualityCard
from llm_influence.influence.influence import Influence
from llm_influence.types import Event


def influence_of(
    scores: Sequence[float],
    *,
    user: str = "196",
    name: str = "Star Wars (1977)",
    titles: Sequence[str] | None = None,
    behaviors: Sequence[str] | None = None,
    values: Sequence[float | None] | None = None,
    times: Sequence[int] | None = None,
    method: str = "integrated_gradients",
    units: str = "target",
) -> Influence:
    count = len(scores)
    events = tuple(
        Event(
            item=f"i{place}",
            behavior=(behaviors or ["rate"] * count)[place],
            timestamp=(times or range(0, 60 * count, 60))[place],
            value=(values or [4.0] * count)[place],
            title=(titles or [f"Film {place}"] * count)[place],
        )
        for place in range(count)
    )
    return Influence(
        user_id=user,
        events=events,
        values=np.array(scores, dtype=np.float64),
        prompt_score=0.25,
        target="item",
        target_id="50",
        target_name=name,
        base_value=-4.0,
        full_value=-3.0,
        prediction=0.032,
        quality=QualityCard(method, "mask", units, 0.004, evaluations=3, seed=7, left_out=2),
    )


@pytest.fixture(scope="session")
def make() -> Callable[..., Influence]:
    return influence_of
