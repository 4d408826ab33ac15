"""Games with known Shapley values, and the file by which peers in other environments read them.

`TableGame` holds the values of all coalitions of a real model. Histories of 20 and 50 events have
too many coalitions. Their games are drawn from the memory's formula (`MemoryGame`), and their
Shapley values are means over many antithetic permutations.

This module needs numpy alone, because the peers' environments import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
ORDERS = 10_000
"""Antithetic pairs of permutations behind the Shapley values of a long game."""
ORDERS_AT_ONCE = 500


@dataclass(frozen=True, slots=True, eq=False)
class TableGame:
    """Values of all coalitions.

    Attributes:
        table: (2^n,) values; player i is bit i of a value's place.
        shapley: (n,) Shapley values.
        error: Relative standard error of ``shapley``.
    """

    table: Floats
    shapley: Floats
    error: float = 0.0

    @property
    def players(self) -> int:
        """Number n of players."""
        return len(self.shapley)

    def values(self, masks: npt.NDArray[np.bool_]) -> Floats:
        """(M,) values of (M, n) coalitions."""
        return self.table[masks @ (1 << np.arange(self.players))]


@dataclass(frozen=True, slots=True, eq=False)
class MemoryGame:
    """Log-odds of a target under a mixture of what the kept events predict.

    An event has a strength, which decays with its distance to the last kept event, and a
    probability that it gives to the target. ``p = (prior p0 + sum of a_i q_i) / (prior + sum of
    a_i)`` with ``a_i = strength_i exp(-(t_last - t_i) / decay)``, and the value is the logit of p.

    Attributes:
        strength: (n,) strengths.
        chance: (n,) probabilities q of the target.
        time: (n,) increasing times.
        decay: Time after which a strength falls to 1/e.
        shapley: (n,) Shapley values.
        error: Relative standard error of ``shapley``.
    """

    strength: Floats
    chance: Floats
    time: Floats
    decay: float
    shapley: Floats
    error: float = 0.0

    PRIOR = 1.0
    BEFORE = 0.01
    """Weight of the prior in the mixture, and the target's probability without any event."""

    @property
    def players(self) -> int:
        """Number n of players."""
        return len(self.strength)

    @classmethod
    def drawn(cls, players: int, seed: int) -> MemoryGame:
        """A game with log-normal strengths and gaps; a third of the events speak for the target."""
        draw = np.random.default_rng([players, seed])
        strength = draw.lognormal(0.0, 1.0, players)
        chance = np.where(
            draw.random(players) < 1 / 3,
            draw.uniform(0.05, 0.6, players),
            draw.uniform(0.0005, 0.01, players),
        )
        time = np.cumsum(draw.lognormal(0.0, 1.0, players))
        decay = float(time[-1] * draw.uniform(0.2, 1.0))
        game = cls(strength, chance, time, decay, np.zeros(players))
        shapley, error = by_permutations(game, draw)
        return cls(strength, chance, time, decay, shapley, error)

    def values(self, masks: npt.NDArray[np.bool_]) -> Floats:
        """(M,) values of (M, n) coalitions."""
        last = np.where(masks, self.time, 0.0).max(axis=1, keepdims=True)
        weight = masks * self.strength * np.exp(-np.maximum(last - self.time, 0.0) / self.decay)
        for_target = self.PRIOR * self.BEFORE + weight @ self.chance
        against = self.PRIOR * (1 - self.BEFORE) + weight @ (1 - self.chance)
        return np.log(for_target / against)


Game = TableGame | MemoryGame


def by_permutations(game: MemoryGame, draw: np.random.Generator) -> tuple[Floats, float]:
    """(n,) Shapley values by antithetic permutations, and their relative standard error."""
    players = game.players
    gains = []
    for _ in range(ORDERS // ORDERS_AT_ONCE):
        orders = np.argsort(draw.random((ORDERS_AT_ONCE, players)), axis=1)
        pairs = np.stack([orders, orders[:, ::-1]], axis=1).reshape(-1, players)
        places = np.argsort(pairs, axis=1)
        masks = np.arange(players + 1)[:, None] > places[:, None]
        values = game.values(masks.reshape(-1, players)).reshape(-1, players + 1)
        own = np.take_along_axis(np.diff(values), places, axis=1)
        gains.append(own.reshape(-1, 2, players).mean(axis=1))
    found = np.concatenate(gains)
    mean = found.mean(axis=0)
    error = np.sqrt(found.var(axis=0, ddof=1).mean() / len(found)) / mean.std()
    return mean, float(error)


def save_games(games: list[Game], path: Path) -> None:
    """Write the games' arrays to an ``.npz`` file."""
    columns = {
        f"{number}/{name}": np.asarray(getattr(game, name))
        for number, game in enumerate(games)
        for name in game.__slots__
    }
    np.savez(path, **columns)


def load_games(path: Path) -> list[Game]:
    """The games of a file that `save_games` wrote."""
    parts: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for key in file.files:
            number, name = key.split("/")
            column = file[key]
            parts.setdefault(int(number), {})[name] = column if column.ndim else float(column)
    return [
        (TableGame if "table" in columns else MemoryGame)(**columns)
        for _, columns in sorted(parts.items())
    ]
