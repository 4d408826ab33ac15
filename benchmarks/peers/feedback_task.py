"""The feedback task that every peer is given: will this user like this item?

Read from `examples.parquet` (user, position, item, label, part; benchmarks/prediction/feedback.py
writes it) and from the saved split beside it. A question's history is every event of its user
before its position, with ratings and times; of the asked event itself time and item may be read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.peers.settings import LIKED_FROM

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Examples:
    """N examples of one part.

    Attributes:
        users: (N,) numbers of users.
        positions: (N,) events of the user before the question, at least 1.
        events: (N,) places of the asked events in the arrays of the task.
        labels: (N,) whether the item was liked.
    """

    users: Ints
    positions: Ints
    events: Ints
    labels: Bools


@dataclass(frozen=True)
class Task:
    """All events, user after user in time order, and what is asked.

    Attributes:
        offsets: (U+1,) user u's events are ``offsets[u]:offsets[u + 1]``.
        items: (N,) rows of the catalogue.
        ratings: (N,) 1 to 5.
        times: (N,) Unix seconds.
        trained: (N,) whether an event belongs to training.
        genres: (I, G) 1.0 where a film is of a genre.
        years: (I,) year of release, NaN where unknown.
        people: (U, 3) age, gender as 0 or 1, occupation as a number.
        parts: Examples of `train`, `validation` and `test`.
    """

    offsets: Ints
    items: Ints
    ratings: Floats
    times: Ints
    trained: Bools
    genres: Floats
    years: Floats
    people: Floats
    parts: dict[str, Examples]

    @property
    def num_items(self) -> int:
        """Size I of the catalogue."""
        return len(self.genres)

    @cached_property
    def users(self) -> Ints:
        """(N,) the user of each event."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @cached_property
    def likes(self) -> Floats:
        """(N,) 1.0 where the rating is a like."""
        return (self.ratings >= LIKED_FROM).astype(np.float64)

    @classmethod
    def load(cls, folder: Path) -> Task:
        """Read a folder that the export has written."""
        catalogue = pq.read_table(folder / "catalogue.parquet")
        events = pq.read_table(folder / "split.parquet")
        ids = catalogue["item_id"].combine_chunks()
        starts = np.flatnonzero(events["position"].to_numpy() == 0)
        offsets = np.append(starts, len(events)).astype(np.int64)
        asked = pq.read_table(folder / "examples.parquet")
        return cls(
            offsets=offsets,
            items=pc.index_in(events["item_id"], value_set=ids).to_numpy().astype(np.int64),
            ratings=events["value"].to_numpy().astype(np.float64),
            times=events["timestamp"].to_numpy().astype(np.int64),
            trained=events["part"].to_numpy() == "train",
            genres=_genres(catalogue["genres"].to_pylist()),
            years=_years(catalogue["_title"].to_pylist()),
            people=_people(pq.read_table(folder / "users.parquet"), events["user_id"].take(starts)),
            parts={part: _examples(asked, part, offsets) for part in PARTS},
        )


def _examples(asked: pa.Table, part: str, offsets: Ints) -> Examples:
    rows = asked.filter(pc.equal(asked["part"], part))
    users, positions = rows["user"].to_numpy(), rows["position"].to_numpy()
    return Examples(users, positions, offsets[users] + positions, rows["label"].to_numpy())


def _genres(genres: list[str]) -> Floats:
    """(I, G) of texts such as "Comedy Drama"."""
    words = [text.split() for text in genres]
    names = sorted(set(chain.from_iterable(words)))
    return np.array([[float(name in found) for name in names] for found in words])


def _years(titles: list[str]) -> Floats:
    """(I,) of titles such as "Star Wars (1977)"."""
    found = [re.search(r"\((\d{4})\)$", title) for title in titles]
    return np.array([float(year[1]) if year else np.nan for year in found])


def _people(table: pa.Table, users: pa.ChunkedArray) -> Floats:
    """(U, 3) age, gender and occupation of the users, in their order."""
    rows = table.take(pc.index_in(users, value_set=table["user_id"].combine_chunks()))
    codes = [
        pc.cast(rows["age"], pa.float64()).to_numpy(),
        (pc.equal(rows["gender"], "F")).to_numpy().astype(np.float64),
        rows["occupation"].combine_chunks().dictionary_encode().indices.to_numpy(),
    ]
    return np.stack(codes, axis=1).astype(np.float64)
