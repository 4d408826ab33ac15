"""Influence tables with known scores, with items and users beside them, and sums by plain loops."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence.analysis.levels import BINS, EVERYTHING, FINE, WIDE, Cells
from llm_influence.analysis.statistics import GROUPS
from llm_influence.influence.facts import QualityCard
from llm_influence.influence.influence import Influence, to_arrow
from llm_influence.influence.table_files import write_table
from llm_influence.types import Event

BEHAVIORS = ("click", "purchase", "dismiss")
GENRES = ("drama", "comedy", "war")
START = 1_000_000_000


def influences(
    score: Callable[[str, int, np.random.Generator], float],
    *,
    users: int = 40,
    length: int = 12,
    seed: int = 0,
    method: str = "leave_one_out",
    target: tuple[str, str] = ("item", "i0"),
) -> list[Influence]:
    """Explanations whose scores are ``score(behavior, events from the end, random)``."""
    random = np.random.default_rng(seed)
    return [_influence(user, score, length, random, method, target) for user in range(users)]


def _influence(user, score, length, random, method, target):
    gaps = np.where(random.random(length) < 0.5, 60, random.integers(3_600, 400_000, size=length))
    times = START + np.cumsum(gaps)
    behaviors = random.choice(BEHAVIORS, size=length)
    items = random.integers(0, 9, size=length)
    events = [
        Event(f"i{item}", str(behavior), int(time), value=float(item % 4), title=f"Film {item}")
        for item, behavior, time in zip(items, behaviors, times, strict=True)
    ]
    scores = np.array([score(e.behavior, length - 1 - n, random) for n, e in enumerate(events)])
    return Influence(
        user_id=f"u{user}",
        events=tuple(events),
        values=scores,
        prompt_score=0.0,
        target=target[0],
        target_id=target[1],
        target_name=target[1],
        base_value=0.0,
        full_value=float(scores.sum()),
        prediction=0.1,
        quality=QualityCard(method, "drop", "target", 0.0, evaluations=3, seed=0, left_out=0),
    )


def write(folder: Path, records: list[Influence], *, shards: int = 2, side: bool = True) -> Path:
    """Shards of these explanations, with items (a genre each) and users (an age each)."""
    for number in range(shards):
        write_table(to_arrow(records[number::shards], "run"), folder / f"part-{number}.parquet")
    if side:
        ids = [f"i{item}" for item in range(9)]
        genres = [GENRES[item % 3] for item in range(9)]
        pq.write_table(pa.table({"item_id": ids, "genre": genres}), folder / "items.parquet")
        names = sorted({record.user_id for record in records})
        ages = [str(20 + place % 50) for place in range(len(names))]
        pq.write_table(pa.table({"user_id": names, "age": ages}), folder / "users.parquet")
    return folder


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
    totals, events, ages = np.zeros((3, GROUPS, BINS))
    wide = np.zeros((2, GROUPS, windows, BINS // WIDE))
    at = (user % GROUPS, fine)
    for array, values in ((totals, scores), (events, 1.0), (ages, age)):
        np.add.at(array, at, values)
    at = (user % GROUPS, window, fine // WIDE)
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
