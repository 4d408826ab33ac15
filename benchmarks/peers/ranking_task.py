"""The task that every peer is given: the events of a saved split, as rows of the catalogue.

`split.parquet` is written by `llm_influence.data.splits.Split.save`, `catalogue.parquet` by
`Catalogue.save`: every system sees the same events in the same order, and the same candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.peers.metrics import target_ranks

Items = npt.NDArray[np.int64]
Scorer = Callable[[list[Items]], npt.NDArray[np.float32]]
"""From B histories to (B, I) scores, -inf for items that were never trained."""

BATCH = 256
NONE: Items = np.empty(0, np.int64)


@dataclass(frozen=True)
class Examples:
    """N examples: after these items, which comes next?

    Attributes:
        histories: N arrays of rows of the catalogue, oldest first.
        targets: (N,) rows of the catalogue.
        repeats: Whether items of a history are candidates.
    """

    histories: list[Items]
    targets: Items
    repeats: bool = False

    def ranks(self, scorer: Scorer) -> npt.NDArray[np.int64]:
        """(N,) rank of every target among all items of the catalogue."""
        return np.concatenate(list(self._ranks(scorer)))

    def _ranks(self, scorer: Scorer) -> Iterator[npt.NDArray[np.int64]]:
        for start in range(0, len(self.targets), BATCH):
            histories = self.histories[start : start + BATCH]
            targets = self.targets[start : start + BATCH]
            seen = [NONE] * len(histories) if self.repeats else histories
            yield target_ranks(scorer(histories), targets, seen)


@dataclass(frozen=True)
class Task:
    """What trains, what validates, what is tested.

    Attributes:
        num_items: Size I of the catalogue.
        train: The training history of each user.
        validation: Asked after the training events.
        test: Asked after the training events and the validation event.
    """

    num_items: int
    train: list[Items]
    validation: Examples
    test: Examples

    @classmethod
    def load(cls, folder: Path, *, repeats: bool = False) -> Task:
        """Read ``split.parquet`` and ``catalogue.parquet`` of a folder."""
        catalogue = pq.read_table(folder / "catalogue.parquet", columns=["item_id"])["item_id"]
        events = pq.read_table(folder / "split.parquet")
        items = pc.index_in(events["item_id"], value_set=catalogue.combine_chunks()).to_numpy()
        starts = np.flatnonzero(events["position"].to_numpy() == 0)
        histories = np.split(items.astype(np.int64), starts[1:])
        parts = np.split(events["part"].to_numpy(), starts[1:])
        trained = [history[part == "train"] for history, part in zip(histories, parts, strict=True)]
        return cls(
            num_items=len(catalogue),
            train=[history for history in trained if len(history)],
            validation=_examples(histories, parts, "validation", repeats),
            test=_examples(histories, parts, "test", repeats),
        )


def _examples(
    histories: list[Items], parts: list[npt.NDArray[np.object_]], name: str, repeats: bool
) -> Examples:
    asked = [
        (history[:place], history[place])
        for history, part in zip(histories, parts, strict=True)
        for place in np.flatnonzero(part == name)
    ]
    before, targets = zip(*asked, strict=True)
    return Examples(list(before), np.array(targets), repeats)
