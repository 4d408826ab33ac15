"""Influences made by hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pytest

from llm_influence.influence.facts import Player, QualityCard
from llm_influence.influence.influence import Influence
from llm_influence.influence.slate_change import SlateChange
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
        values=np.array(scores, dtype=np.float64),
        players=players,
        quality=QualityCard(method, "mask", units, gap, 3, 7, 2, **(card or {})),
        **fields,
    )


@pytest.fixture(scope="session")
def make() -> Callable[..., Influence]:
    return influence_of


@pytest.fixture
def influences(make):
    return [
        make([0.5, -1.0, 2.0], values=[1.0, None, 4.5], titles=["A", "", "C"]),
        make([0.0], method="random", units="share", user_id="7", gates=np.array([0.25])),
        make(
            [1.0, 1.0],
            standard_errors=np.array([0.1, 0.2]),
            unread=("value", "time"),
            slate_change=SlateChange(1, 3, 1, ("A", "B"), ("C", "D")),
            method="shapley",
            card={"largest_standard_error": 0.2, "converged": False, "lds": 0.5}
            | {"agreement": -1.0, "agreement_with": "random", "card_evaluations": 18},
        ),
    ]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert list(a.events) == list(b.events)
        np.testing.assert_array_equal(a.values, b.values)
        assert (a.standard_errors is None) == (b.standard_errors is None)
        if b.standard_errors is not None:
            np.testing.assert_array_equal(a.standard_errors, b.standard_errors)
        for name in ("players", "slate_change", "unread", "block"):
            assert getattr(a, name) == getattr(b, name)
        np.testing.assert_equal(a.gates, b.gates)
        np.testing.assert_equal(asdict(a.quality), asdict(b.quality))  # nan is nan
        for name in ("user_id", "target", "target_id", "target_name"):
            assert getattr(a, name) == getattr(b, name)
        for name in ("prompt_score", "base_value", "full_value", "prediction"):
            assert getattr(a, name) == getattr(b, name)
