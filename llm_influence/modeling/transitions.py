"""Linear transitions: a ridge regression of what comes next on what came before, in closed form.

For every event of a history but the last, a row of S holds the items up to it and a row of T those
after it. An item k events back weighs ``exp(-k / source_decay)``, one k events ahead weighs
``exp(-(k - 1) / target_decay)``. The matrix ``B = (S'S + ridge I)^-1 S'T`` predicts the next items
from ``x B``, with x the decayed history (session-based linear models: Choi et al. 2021,
arXiv:2103.16104). It needs no gradient step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.sparse import csr_array

from llm_influence.data.log import BehaviorLog
from llm_influence.types import FloatArray, IntArray

REACH = 50
"""Events before and after an event that are used."""
HELD_OUT = 1000
"""Most users that are held out to choose the setting."""
LAST = 10
"""Last events of a held-out user that are predicted."""


@dataclass(frozen=True, slots=True)
class LinearSetting:
    """Decays in events, and the ridge."""

    source_decay: float
    target_decay: float
    ridge: float


SETTINGS = (
    LinearSetting(8.0, 2.0, 300.0),
    LinearSetting(4.0, 2.0, 30.0),
    LinearSetting(2.0, 1.0, 10.0),
)
READ_DECAYS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Decays of the history at reading that are tried."""


def moments(
    histories: list[IntArray], items: int, setting: LinearSetting
) -> tuple[FloatArray, FloatArray]:
    """(I, I) sums S'S and S'T over histories of item codes, float32."""
    own = np.zeros((items, items), dtype=np.float32)
    cross = np.zeros_like(own)
    for part in range(0, len(histories), 512):
        source, target = _decayed(histories[part : part + 512], items, setting)
        for total, other in ((own, source), (cross, target)):
            product = (source.T @ other).tocoo()
            # coordinates of a product are unique
            total[product.coords[0], product.coords[1]] += product.data
    return own, cross


def _decayed(
    histories: list[IntArray], items: int, setting: LinearSetting
) -> tuple[csr_array, csr_array]:
    """Rows of S and T of some histories, as sparse (events, items) matrices."""
    lengths = np.array([len(history) for history in histories])
    codes = np.concatenate(histories)
    place = np.arange(len(codes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    left = np.repeat(lengths, lengths) - place - 1  # later events
    row = np.arange(len(codes))
    columns: list[list[np.ndarray]] = [[], [], [], [], [], []]
    for step in range(REACH):
        back = row[(place >= step) & (left > 0)]
        ahead = row[left > step]
        values = (
            *(back, codes[back - step], np.full(len(back), np.exp(-step / setting.source_decay))),
            *(ahead, codes[ahead + step + 1]),
            np.full(len(ahead), np.exp(-step / setting.target_decay)),
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    parts = [np.concatenate(column) for column in columns]
    shape = (len(codes), items)
    return tuple(
        csr_array((parts[n + 2].astype(np.float32), (parts[n], parts[n + 1])), shape=shape)
        for n in (0, 3)
    )


def solve(own: FloatArray, cross: FloatArray, ridge: float) -> FloatArray:
    """(I, I) matrix B from the sums of `moments`."""
    left = own.copy()
    left[np.diag_indices_from(left)] += ridge
    solution: FloatArray = scipy.linalg.solve(left, cross, assume_a="pos", overwrite_a=True)
    return solution


def linear_transitions(histories: list[IntArray], items: int, setting: LinearSetting) -> FloatArray:
    """(I, I) matrix B of histories of item codes; row j holds what item j adds to each next item.

    Memory is about 12 bytes for each pair of items; time grows with the cube of their number.
    """
    return solve(*moments(histories, items, setting), setting.ridge)


def item_codes(log: BehaviorLog) -> list[IntArray]:
    """Item codes of the histories of a log."""
    return np.split(log.items.astype(np.int64), log.offsets[1:-1])


def decayed_histories(histories: Sequence[IntArray], items: int, decay: float) -> csr_array:
    """(N, I) histories of item codes in which an item k events back weighs ``exp(-k / decay)``."""
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    codes = np.concatenate(histories) if len(histories) else np.empty(0, np.int64)
    back = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(codes)) - 1
    row = np.repeat(np.arange(len(lengths)), lengths)
    weights = np.exp(-back / decay).astype(np.float32)
    return csr_array((weights, (row, codes)), shape=(len(lengths), items))


def fit_associations(log: BehaviorLog, *, neighbors: int, seed: int) -> tuple[csr_array, float]:
    """The linear transitions that predict the last events of held-out users best.

    Args:
        log: Training events.
        neighbors: Number of links of each item that are kept, those of largest absolute value.
        seed: Of the held-out users, a tenth of all, at most `HELD_OUT`.

    Returns:
        The matrix of all users, divided by the spread of its scores over the items, and the decay
        of the history at reading.
    """
    items, users = len(log.catalogue), item_codes(log)
    order = np.random.default_rng(seed).permutation(len(users))
    most = max(1, 100_000_000 // (LAST * items))  # scores of all held-out examples are in memory
    cut = max(1, min(HELD_OUT, most, len(users) // 10))
    histories = [users[user] for user in order[:cut]]
    kept = [users[user] for user in order[cut:]] or histories
    cuts = [(h, place) for h in histories for place in range(max(1, len(h) - LAST), len(h))]
    targets = np.array([history[place] for history, place in cuts])
    before = [history[:place] for history, place in cuts]
    seen = decayed_histories(before, items, 1.0).toarray() > 0
    seen[np.arange(len(targets)), targets] = False
    best = (-1.0, SETTINGS[0], READ_DECAYS[-1])
    for setting in SETTINGS:
        matrix = linear_transitions(kept, items, setting)
        for decay in READ_DECAYS:
            scores = decayed_histories(before, items, decay) @ matrix
            scores[seen] = -np.inf  # memories of repeats are the task of the gates
            best = max(best, (_ndcg(scores, targets), setting, decay), key=lambda entry: entry[0])
    _, setting, decay = best
    matrix = linear_transitions(users, items, setting)
    spread = float(np.std(decayed_histories(histories, items, decay) @ matrix, axis=1).mean())
    return _largest(matrix / (spread or 1.0), neighbors), decay


def _largest(matrix: FloatArray, neighbors: int) -> csr_array:
    """The entries of largest absolute value of each row of a dense matrix, as a sparse one."""
    items = len(matrix)
    kept = min(neighbors, items)
    columns = np.empty((items, kept), dtype=np.int64)
    for start in range(0, items, 512):  # a whole order would take three times the matrix
        rows = np.abs(matrix[start : start + 512])
        columns[start : start + 512] = np.argpartition(-rows, kept - 1, axis=1)[:, :kept]
    columns.sort(axis=1)
    values = np.take_along_axis(matrix, columns, axis=1)
    starts = np.arange(items + 1) * kept
    return csr_array((values.ravel(), columns.ravel(), starts), shape=matrix.shape)


def _ndcg(scores: FloatArray, targets: np.ndarray) -> float:
    """Mean NDCG@10 of the targets among all items."""
    own = scores[np.arange(len(targets)), targets][:, None]
    ranks = (scores > own).sum(axis=1) + 1
    return float(np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0).mean())
