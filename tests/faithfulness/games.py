"""Games with known answers."""

from collections.abc import Callable, Sequence

import numpy as np

from llm_influence.faithfulness.games import Game, MethodScores

Value = Callable[[np.ndarray], np.ndarray]


def by_history(values: Sequence[Value]) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """A value function from one function (M, E) -> (M,) for each history."""
    return lambda masks: [value(mask) for value, mask in zip(values, masks, strict=True)]


def game(values: Sequence[Value], sizes: Sequence[int], *, ranks=None, **options: int) -> Game:
    users = [f"user {n}" for n in range(len(sizes))]
    return Game(users, sizes, by_history(values), by_history(ranks or values), **options)


def additive(weights: Sequence[np.ndarray], base: float = -1.0, **options) -> Game:
    """f(S) = base + the sum of the weights of S."""
    values = [lambda mask, w=w: base + mask @ w for w in weights]
    return game(values, [len(w) for w in weights], **options)


def scored(played: Game, scores: Sequence[np.ndarray], base: float = -1.0, **more) -> MethodScores:
    rows = [np.asarray(row, dtype=np.float64) for row in scores]
    count = len(rows)
    return MethodScores(rows, played.orders(rows), np.full(count, base), np.zeros(count), **more)
