"""Gates of the memory: how much an event counts, and the decay of each behaviour."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn

ITEM, BEHAVIOR, VALUE, AGE, DISTANCE = range(5)
"""Columns of an event record, see `encoder.RECORD`."""
AGE_UNIT = 30.0
AGE_KNOTS = 22
"""Gates are interpolated at ages of about 0, 30 s, 90 s and so on, each twice the last: up to
about two years."""
DISTANCE_KNOTS = 8
"""Gates are interpolated at distances of 0, 1, 3, 7 and so on, up to 127."""


@dataclass(frozen=True, slots=True)
class Places:
    """Places of (...) events between the knots of a gate.

    Attributes:
        age: Number of the knot below the age, counted through the knots of all behaviours.
        age_share: Distance from that knot, between 0 and 1.
        value: Value bin.
        distance: Number of the knot below the distance.
        distance_share: Distance from that knot, between 0 and 1.
    """

    age: Tensor
    age_share: Tensor
    value: Tensor
    distance: Tensor
    distance_share: Tensor

    @classmethod
    def of(cls, records: Tensor) -> Places:
        """The places of (..., 5) event records."""
        by_age = (1 + records[..., AGE].float().clamp(min=0) / AGE_UNIT).log2()
        age, age_share = _between(by_age, AGE_KNOTS)
        by_distance = (1 + records[..., DISTANCE].float().clamp(min=0)).log2()
        first = records[..., BEHAVIOR].clamp(min=0).int() * AGE_KNOTS
        value = records[..., VALUE].clamp(min=0).int()
        return cls(age + first, age_share, value, *_between(by_distance, DISTANCE_KNOTS))

    def __getitem__(self, rows: Tensor | slice) -> Places:
        """The places at an index of the first dimension."""
        return Places(*(getattr(self, name)[rows] for name in self.__slots__))


def _between(place: Tensor, knots: int) -> tuple[Tensor, Tensor]:
    """The knot below each real place, clamped to 0 and K - 1, and the distance from it."""
    place = place.clamp(0, knots - 1)
    low = place.int().clamp(max=knots - 2)
    return low, place - low


class Gate(nn.Module):
    """How much an event counts, from its behaviour, value, age and distance.

    ``log gate = a[behaviour](log age) + v[value] + d(log distance)`` with a and d piecewise linear.

    Args:
        behaviors: Number of behaviours.
        values: Number of value bins, the one for "no value" included.
        start: Gate of every event before it is fitted.
    """

    def __init__(self, behaviors: int, values: int, start: float) -> None:
        super().__init__()
        self.age = nn.Parameter(torch.full((behaviors, AGE_KNOTS), math.log(start)))
        self.value = nn.Parameter(torch.zeros(values))
        self.distance = nn.Parameter(torch.zeros(DISTANCE_KNOTS))

    def forward(self, places: Places) -> Tensor:
        """(...) gates of events at (...) places."""
        age, distance = self.age.flatten(), self.distance
        logarithm = torch.lerp(age[places.age], age[places.age + 1], places.age_share)
        logarithm = logarithm + self.value[places.value]
        low, high = distance[places.distance], distance[places.distance + 1]
        return (logarithm + torch.lerp(low, high, places.distance_share)).exp()

    def roughness(self) -> Tensor:
        """Sum of squared second differences along age and distance, and of the value terms."""
        bends = [self.age.diff(n=2, dim=1), self.distance.diff(n=2)]
        return sum((b.square().sum() for b in bends), self.value.square().sum())


@dataclass(frozen=True, slots=True)
class BehaviorGate:
    """How strongly and how long the events of a behaviour cause later events.

    Attributes:
        behavior: Name of the behaviour.
        weight: Gate at age 0, relative to that of the strongest behaviour.
        half_life: Age in seconds at which the gate is half of that; inf for a gate that does not
            fall within the training data.
        events: Number of training events behind the estimate.
    """

    behavior: str
    weight: float
    half_life: float
    events: int


def fitted_decay(ages: np.ndarray, gates: np.ndarray) -> tuple[float, float]:
    """Weight and half-life of the exponential decay that fits gates at their ages best."""
    if not len(ages):
        return 0.0, math.inf
    top, middle = float(gates.max()) or 1.0, float(np.median(ages[ages > 0])) if ages.any() else 1.0

    def residuals(values: np.ndarray) -> np.ndarray:
        return np.exp(values[0]) * 0.5 ** (ages / np.exp(values[1])) - gates / top

    begins = [least_squares(residuals, [0.0, math.log(middle * by)]) for by in (0.1, 1.0, 10.0)]
    weight, half_life = np.exp(min(begins, key=lambda fit: fit.cost).x)
    longest = 10 * float(ages.max(initial=1))
    return top * float(weight), float(half_life) if half_life < longest else math.inf
