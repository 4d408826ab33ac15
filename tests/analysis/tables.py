"""Influence tables made by hand, with items and users beside them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
