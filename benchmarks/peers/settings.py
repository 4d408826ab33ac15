"""What is tried of each peer: one point known to work well first, then points drawn from a grid."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

Settings = dict[str, str | int | float | bool]
Grid = dict[str, tuple[str | int | float | bool, ...]]

RANKING = {
    **dict.fromkeys(("sasrec", "bert4rec", "esasrec"), "rectools_peer"),
    "gru4rec": "gru4rec_peer",
    **dict.fromkeys(("sasrec-prefixes", "bsarec"), "prefix_peer"),
}
CLOSED_FORM = ("linear", "ease")
"""Peers that are solved in closed form, by `benchmarks.prediction.closed_form`."""
FEEDBACK = {"tree": "tree_peer", "lstm": "lstm_peer", "din": "din_peer"}
"""The program of each peer."""

LIKED_FROM = 4.0
"""A rating of at least this is a like."""

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

_PREFIXES: Grid = {
    "width": (64,),
    "layers": (2,),
    "heads": (1, 2, 4),
    "length": (50,),
    "dropout": (0.3, 0.5),
    "batch_size": (256,),
    "lr": (1e-3, 5e-4),
}

_EASE: Grid = {"ridge": (30.0, 100.0, 300.0, 1000.0, 3000.0)}

_LINEAR: Grid = {
    "source_decay": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    "target_decay": (0.5, 1.0, 2.0, 4.0),
    "ridge": (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0),
}

_CLICK_FIRST: dict[str, Settings] = {
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

_CLICK: dict[str, Grid] = {
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

GRIDS: dict[tuple[str, str], Grid] = {
    **{("sasrec", task): {"model": ("sasrec",), **grid} for task, grid in _TRANSFORMER.items()},
    **{("gru4rec", task): grid for task, grid in _GRU.items()},
    **{
        ("esasrec", task): {"model": ("esasrec",), "n_negatives": (64, 256), **grid}
        for task, grid in _TRANSFORMER.items()
    },
    **{
        (system, task): grid
        for system, grid in (("sasrec-prefixes", _PREFIXES), ("ease", _EASE), ("linear", _LINEAR))
        for task in _TRANSFORMER
    },
    **{
        ("bsarec", task): {**_PREFIXES, "alpha": (0.1, 0.3, 0.5, 0.7), "c": (3, 5, 7, 9)}
        for task in _TRANSFORMER
    },
    **{
        ("bert4rec", task): {"model": ("bert4rec",), "mask_prob": (0.15, 0.3, 0.5), **grid}
        for task, grid in _TRANSFORMER.items()
    },
    **{(system, "feedback"): grid for system, grid in _CLICK.items()},
}

_LENGTH = {"ml100k": 100, "beauty": 20}
_LINEAR_FIRST = {"ml100k": (8.0, 2.0, 300.0), "beauty": (2.0, 1.0, 10.0)}
_BATCH = {"ml100k": 32, "beauty": 64}


def first(system: str, task: str) -> Settings:
    """The point that is tried first."""
    point: Settings
    if task == "feedback":
        return _CLICK_FIRST[system]
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
    if system == "ease":
        return {"ridge": 300.0}
    if system == "linear":
        source, target, ridge = _LINEAR_FIRST[task]
        return {"source_decay": source, "target_decay": target, "ridge": ridge}
    if system in ("sasrec-prefixes", "bsarec"):
        point = {
            "width": 64,
            "layers": 2,
            "heads": 1,
            "length": 50,
            "dropout": 0.5,
            "batch_size": 256,
            "lr": 1e-3,
        }
        mix = {"alpha": 0.7, "c": 5} if system == "bsarec" else {}  # the authors' on Beauty
        return point | mix
    point = {
        "model": system,
        "n_blocks": 2,
        "n_factors": 64,
        "dropout_rate": 0.2 if system == "bert4rec" else 0.4,
        "session_max_len": _LENGTH[task],
        "batch_size": _BATCH[task],
        "lr": 1e-3,
    }
    more: dict[str, Settings] = {"bert4rec": {"mask_prob": 0.3}, "esasrec": {"n_negatives": 256}}
    return point | more.get(system, {})


def points(system: str, task: str, seed: int = 0) -> Iterator[Settings]:
    """The first point, then all other points of the grid in an order drawn from ``seed``."""
    known = first(system, task)
    yield known
    grid = GRIDS[system, task]
    drawn = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    random.Random(seed).shuffle(drawn)  # noqa: S311
    yield from (point for point in drawn if point != known)
