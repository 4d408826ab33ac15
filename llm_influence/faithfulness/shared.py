"""One value function for all methods that are compared, passes counted for each of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from llm_influence.attribution.task import Task
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.types import BoolArray, FloatArray


class View(ValueFunction):
    """A value function seen by one method: known values are shared, passes are the method's own.

    A set that another method has asked for before costs no pass of the model, yet it would have
    cost one alone, and that is what ``passes`` says.
    """

    def __init__(self, shared: ValueFunction) -> None:
        self.__dict__.update(shared.__dict__)
        self._shared = shared
        self._asked: list[set[bytes]] = [set() for _ in shared.passes]
        self.passes = np.zeros_like(shared.passes)

    def __call__(self, masks: Sequence[BoolArray]) -> list[FloatArray]:
        """Values of masks; see `ValueFunction`."""
        for row, asked in enumerate(self._asked):
            asked.update(mask.tobytes() for mask in masks[row])
            self.passes[row] = len(asked)
        return self._shared(masks)


@dataclass(frozen=True, eq=False)
class SharedTask(Task):
    """A task whose value function is shared with other tasks on the same histories.

    Attributes:
        shared: The value function of all of them.
    """

    shared: ValueFunction = field(kw_only=True)

    @cached_property
    def values(self) -> ValueFunction:
        """This task's view of the shared value function."""
        return View(self.shared)
