"""Random draws: from the seed and the user, never from a history's place in a batch."""

from __future__ import annotations

import zlib

import numpy as np

from llm_influence.attribution.task import Task


def user_generator(seed: int, user_id: str, *stream: int) -> np.random.Generator:
    """The draws of one user; a ``stream`` keeps them apart from others of the same seed."""
    return np.random.default_rng([seed, zlib.crc32(user_id.encode()), *stream])


def generator(task: Task, row: int) -> np.random.Generator:
    """The draws of one history of a task."""
    return user_generator(task.seed, task.histories[row].user_id)


def generators(task: Task) -> list[np.random.Generator]:
    """The draws of every history of a task."""
    return [generator(task, row) for row in range(len(task.histories))]
