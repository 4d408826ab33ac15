"""Influences made by hand."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from llm_influence.influence.influence import Influence, Player, QualityCard
from llm_influence.types import Event

DAY = 86_400


def influence_of(
    scores: Sequence[float],
    *,
    titles: Sequence[str] | None = None,
    behaviors: Sequence[str] | None = None,
    values: Sequence[float | None] | None = None,
    times: Sequence[int] | None = None,
    method: str = "integrated_gradients",
    units: str = "target",
    gap: float = 0.0,
    card: Mapping[str, object] | None = None,
    players: Sequence[Player] | None = None,
    **other: object,
) -> Influence:
    count = len(scores) if players is None else len({p.event for p in players} - {None})
    events = [
        Event(
            item=f"i{place}",
            behavior=(behaviors or ["rate"] * count)[place],
            timestamp=(times or range(0, DAY * count, DAY))[place],
            value=(values or [4.0] * count)[place],
            title=(titles or [f"Film {place}"] * count)[place],
        )
        for place in range(count)
    ]
    fields = {
        "user_id": "196",
        "target": "item",
        "target_id": "50",
        "target_name": "Star Wars (1977)",
        "prompt_score": 0.25,
        "base_value": -4.0,
        "full_value": -4.0 + float(np.sum(scores)),
        "prediction": 0.032,
        **other,
    }
    return Influence(
        events=events,
        scores=np.array(scores, dtype=np.float64),
        players=players,
        quality=QualityCard(method, "mask", units, gap, 3, 7, 2, **(card or {})),
        **fields,
    )


@pytest.fixture(scope="session")
def make() -> Callable[..., Influence]:
    return influence_of


@pytest.fixture(scope="session")
def to_text() -> Callable[..., str]:
    from llm_influence.influence import text as sentence

    return sentence.to_text
