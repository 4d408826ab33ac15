"""How often the event's item has been in the history before: what a sequence model cannot count.

Groceries are bought again, and a household's own frequency of an item is hard to beat. Told at each
event which time it is, a model need not add up.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llm_influence.rendering.gaps import Language
from llm_influence.types import IntArray

TIMES_EDGES: npt.NDArray[np.int64] = np.array([0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30], np.int64)
"""(K,) lower edges of the buckets of earlier events with the same item; the last is open."""
TIMES_EDGES.setflags(write=False)


def times_codes(items: IntArray, lengths: IntArray) -> npt.NDArray[np.int32]:
    """Bucket how many earlier events of its history have the event's item.

    Args:
        items: (S,) item codes of all histories, one after the other, each in order of time.
        lengths: (N,) events of each history.

    Returns:
        (S,) codes: places in `TIMES_EDGES`.
    """
    histories = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((items, histories))  # stable: equal ones stay in order of time
    sorted_items, sorted_histories = items[order], histories[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (np.diff(sorted_items) != 0) | (np.diff(sorted_histories) != 0)
    places = np.arange(len(order))
    first = np.maximum.accumulate(np.where(begins, places, 0))
    earlier = np.empty(len(order), dtype=np.int64)
    earlier[order] = places - first
    return (np.searchsorted(TIMES_EDGES, earlier, side="right") - 1).astype(np.int32)


def times_words(language: Language = "en") -> tuple[str, ...]:
    """The word of every bucket: ``"time 1"``, ``"第1次"``; the lower edge of what it covers."""
    said = "第{}次" if language == "zh" else "time {}"
    return tuple(said.format(edge + 1) for edge in TIMES_EDGES)
