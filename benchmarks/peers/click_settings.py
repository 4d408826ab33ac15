"""What is tried of each peer of benchmarks/prediction/feedback.py: a known point first, then a grid."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

Settings = dict[str, str | int | float | bool]
Grid = dict[str, tuple[str | int | float | bool, ...]]

LIKED_FROM = 4.0
"""A rating of at least this is a like."""

PROGRAMS = {"tree": "tree_peer", "lstm": "lstm_peer", "din": "din_peer"}

FIRST: dict[str, Settings] = {
    "tree": {
        "item_statistics": "others",
        "learning_rate": 0.05,
        "max_leaf_nodes": 15,
        "min_samples_leaf": 100,
        "l2_regularization": 10.0,
        "max_features": 0.5,
    },
    "lstm": {
        "width": 64,
        "cell": "lstm",
        "genres": True,
        "gaps": True,
        "dropout": 0.5,
        "weight_decay": 1e-5,
        "learning_rate": 3e-3,
        "batch_users": 16,
    },
    "din": {
        "embedding_size": 16,
        "mlp": 64,
        "history": 50,
        "genres": True,
        "dropout": 0.3,
        "weight_decay": 1e-5,
        "learning_rate": 1e-3,
        "batch_size": 256,
    },
}

GRIDS: dict[str, Grid] = {
    "tree": {
        "item_statistics": ("past", "others"),
        "learning_rate": (0.02, 0.05, 0.1),
        "max_leaf_nodes": (7, 15, 31, 63),
        "min_samples_leaf": (20, 50, 100, 200),
        "l2_regularization": (0.0, 1.0, 10.0, 100.0),
        "max_features": (0.2, 0.5, 1.0),
    },
    "lstm": {
        "width": (32, 64, 128),
        "cell": ("lstm", "gru"),
        "genres": (True, False),
        "gaps": (True, False),
        "dropout": (0.2, 0.4, 0.5, 0.6),
        "weight_decay": (0.0, 1e-6, 1e-5, 1e-4),
        "learning_rate": (1e-3, 3e-3, 1e-2),
        "batch_users": (8, 16, 32),
    },
    "din": {
        "embedding_size": (8, 16, 32),
        "mlp": (32, 64, 128),
        "history": (20, 50, 100),
        "genres": (True, False),
        "dropout": (0.0, 0.2, 0.4, 0.6),
        "weight_decay": (0.0, 1e-6, 1e-5, 1e-4),
        "learning_rate": (5e-4, 1e-3, 3e-3),
        "batch_size": (128, 256, 512),
    },
}


def points(system: str, seed: int = 0) -> Iterator[Settings]:
    """The known point, then all other points of the grid in an order drawn from ``seed``."""
    first, grid = FIRST[system], GRIDS[system]
    yield first
    drawn = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    random.Random(seed).shuffle(drawn)  # noqa: S311
    yield from (point for point in drawn if point != first)
