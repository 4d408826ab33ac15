"""What is tried of each peer: one point known to work well first, then points drawn from a grid."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

Settings = dict[str, str | int | float]
Grid = dict[str, tuple[str | int | float, ...]]

PROGRAMS = {
    "sasrec": "rectools_peer",
    "gru4rec": "gru4rec_peer",
    "bert4rec": "rectools_peer",
}

_TRANSFORMER: dict[str, Grid] = {
    "ml100k": {
        "n_blocks": (1, 2),
        "n_factors": (64, 128, 256),
        "dropout_rate": (0.2, 0.4, 0.5),
        "session_max_len": (50, 100, 200),
        "batch_size": (32, 64, 128),
        "lr": (1e-3, 5e-4),
    },
    "beauty": {
        "n_blocks": (1, 2),
        "n_factors": (64, 128),
        "dropout_rate": (0.2, 0.4, 0.5),
        "session_max_len": (10, 20, 50),
        "batch_size": (32, 64, 128),
        "lr": (1e-3, 5e-4),
    },
}

_GRU: dict[str, Grid] = {
    task: {
        "width": (64, 128, 256),
        "dropout_p_embed": (0.0, 0.2, 0.4),
        "dropout_p_hidden": (0.0, 0.2, 0.4),
        "learning_rate": (0.03, 0.05, 0.1, 0.2),
        "batch_size": (32, 64, 128),
        "n_sample": (512, 2048),
        "sample_alpha": (0.25, 0.5, 0.75),
        "logq": (0.0, 1.0),
    }
    for task in ("ml100k", "beauty", "complete_journey")
}

GRIDS: dict[tuple[str, str], Grid] = {
    **{("sasrec", task): {"model": ("sasrec",), **grid} for task, grid in _TRANSFORMER.items()},
    **{("gru4rec", task): grid for task, grid in _GRU.items()},
    **{
        ("bert4rec", task): {"model": ("bert4rec",), "mask_prob": (0.15, 0.3, 0.5), **grid}
        for task, grid in _TRANSFORMER.items()
    },
}

_LENGTH = {"ml100k": 100, "beauty": 20}
_BATCH = {"ml100k": 32, "beauty": 64}


def first(system: str, task: str) -> Settings:
    """The point that is tried first."""
    if system == "gru4rec":
        return {
            "width": 128,
            "dropout_p_embed": 0.2,
            "dropout_p_hidden": 0.2,
            "learning_rate": 0.1,
            "batch_size": 128,
            "n_sample": 512,
            "sample_alpha": 0.5,
            "logq": 0.0,
        }
    point: Settings = {
        "model": system,
        "n_blocks": 2,
        "n_factors": 64,
        "dropout_rate": 0.4 if system == "sasrec" else 0.2,
        "session_max_len": _LENGTH[task],
        "batch_size": _BATCH[task],
        "lr": 1e-3,
    }
    return point if system == "sasrec" else {**point, "mask_prob": 0.3}


def points(system: str, task: str, seed: int = 0) -> Iterator[Settings]:
    """The first point, then all other points of the grid in an order drawn from ``seed``."""
    known = first(system, task)
    yield known
    grid = GRIDS[system, task]
    drawn = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    random.Random(seed).shuffle(drawn)  # noqa: S311
    yield from (point for point in drawn if point != known)
