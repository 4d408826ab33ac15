"""Explanations whose scores follow age and date, and sums of cells by plain loops."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from llm_influence.analysis.event_cells import BINS, EVERYTHING, FINE, WIDE, Cells
from llm_influence.analysis.statistics import PARTS
from llm_influence.influence.influence import Influence
from tests.analysis.tables import influences

DAY = 86_400
Score = Callable[[str, int, int, np.random.Generator], float]


def timed(
    score: Score, *, users: int = 100, days: int = 70, seed: int = 0, **other
) -> list[Influence]:
    """Users spread over some days; scores are ``score(behavior, age, moment, random)``."""
    random = np.random.default_rng([seed, 1])
    return [
        _timed(record, score, int(random.integers(days)) * DAY, random)
        for record in influences(lambda *_: 0.0, users=users, seed=seed, **other)
    ]


def rescored(records: list[Influence], score: Score, seed: int = 1) -> list[Influence]:
    """The same histories with other scores."""
    random = np.random.default_rng([seed, 2])
    return [_timed(record, score, 0, random) for record in records]


def _timed(record, score, shift, random):
    events = tuple(replace(event, timestamp=event.timestamp + shift) for event in record.events)
    last = events[-1].timestamp
    scores = [score(event.behavior, last - event.timestamp, last, random) for event in events]
    return replace(record, events=events, values=np.array(scores))


def cells_of(user, age, window, scores, *, windows=1, name=(EVERYTHING, "")) -> Cells:
    """What `gather_cells` should find, event by event."""
    fine = np.minimum(np.floor(FINE * np.log2(1 + age / 60)), BINS - 1).astype(int)
    totals, events, ages = np.zeros((3, PARTS, BINS))
    wide = np.zeros((2, PARTS, windows, BINS // WIDE))
    at = (user % PARTS, fine)
    for array, values in ((totals, scores), (events, 1.0), (ages, age)):
        np.add.at(array, at, values)
    at = (user % PARTS, window, fine // WIDE)
    np.add.at(wide[0], at, scores)
    np.add.at(wide[1], at, 1.0)
    count = events.sum(axis=0)
    middle = np.divide(ages.sum(axis=0), count, out=np.full(BINS, np.nan), where=count > 0)
    return Cells(*name, totals, events, middle, *wide)


def drawn(seed, *, users=300, length=10, windows=1, personal=0.5):
    """(user, age, window, noise): users act in one window; a part of the noise is their own."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), length)
    age = (60 * 2 ** random.uniform(0, 14, size=len(user))).astype(int)
    window = random.integers(windows, size=users)[user]
    noise = personal * random.normal(size=users)[user] + random.normal(size=len(user))
    return user, age, window, noise
