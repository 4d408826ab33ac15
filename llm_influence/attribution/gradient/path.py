"""Values and gradients of the target at any input vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.budget import batches
from llm_influence.attribution.task import Task
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.types import FloatArray, IntArray

TOKENS = 4096
"""Tokens of a batch, padding included; affects speed and memory alone. Gradients keep what every
layer computed, so what fits without them (`TokenBudget`) may not fit here."""

Make = Callable[[Tensor], Tensor]
"""From (m,) numbers of wanted points to their (m, T, H) input vectors."""


class Surface:
    """The target as a function of the input vectors of N histories.

    Points are wanted for any of the histories, any number of times. They are sorted by length and
    run in batches under a token budget; their vectors are made when their batch runs.

    Attributes:
        inputs: (N, T, H) the histories' own vectors, cut from the graph.
        passes: (N,) passes so far; a backward pass counts as one more.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.passes: IntArray = np.zeros(len(task.histories), dtype=np.int64)
        with torch.no_grad():
            self.inputs = task.model.embed(task.batch).detach()

    @cached_property
    def _items(self) -> Tensor:
        """(I, H) item vectors, made once: they are no part of any path."""
        with torch.no_grad():
            return self.task.model.item_vectors()

    @cached_property
    def lengths(self) -> IntArray:
        """(N,) tokens of each history."""
        return self.task.batch.last().cpu().numpy() + 1

    def values(self, rows: IntArray, make: Make) -> FloatArray:
        """(M,) values of the target at M points.

        Args:
            rows: (M,) the history that each point belongs to.
            make: Input vectors of points.
        """
        found = np.zeros(len(rows))
        for chosen, batch in self._batches(rows):
            with torch.no_grad():
                vectors = make(chosen)[:, : batch.input_ids.shape[1]]
                found[chosen.numpy()] = (
                    self._target(batch, vectors, rows[chosen.numpy()]).cpu().double().numpy()
                )
        np.add.at(self.passes, rows, 1)
        return found

    def gradients(
        self, rows: IntArray, make: Make, read: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[FloatArray, FloatArray]:
        """Values at M points, and what ``read`` makes of the gradients there.

        Args:
            rows: (M,) the history that each point belongs to.
            make: Input vectors of points.
            read: From (m,) numbers of points and (m, T, H) gradients, zero at padding, to (m, ...)
                numbers to be kept.

        Returns:
            (M,), and (M, ...).
        """
        values, kept = np.zeros(len(rows)), []
        order = []
        for chosen, batch in self._batches(rows):
            longest = batch.input_ids.shape[1]
            vectors = make(chosen)[:, :longest].detach().requires_grad_()
            with torch.enable_grad():
                found = self._target(batch, vectors, rows[chosen.numpy()])
                (gradients,) = torch.autograd.grad(found.sum(), vectors)
            values[chosen.numpy()] = found.detach().cpu().double().numpy()
            whole = self.inputs.new_zeros(len(chosen), *self.inputs.shape[1:])
            whole[:, :longest] = gradients * batch.attention_mask[..., None]
            kept.append(read(chosen, whole).cpu().double().numpy())
            order.append(chosen.numpy())
        np.add.at(self.passes, rows, 2)
        return values, np.concatenate(kept)[np.argsort(np.concatenate(order))]

    def _target(self, batch: EncodedBatch, vectors: Tensor, rows: IntArray) -> Tensor:
        model = self.task.model
        states = model.query(batch, vectors)
        prediction = model.heads(states, self._items)
        return self.task.target.values(prediction, torch.from_numpy(rows))

    def _batches(self, rows: IntArray) -> Iterator[tuple[Tensor, EncodedBatch]]:
        """Numbers of points and the batch that they belong to, longest histories first."""
        device = self.task.batch.input_ids.device
        for chosen in batches(self.lengths[rows], TOKENS):
            numbers = torch.from_numpy(rows[chosen]).to(device)
            yield torch.from_numpy(chosen), self.task.batch.take(numbers)
