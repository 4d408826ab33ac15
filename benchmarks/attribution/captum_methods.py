"""Captum's methods as compared: the same model, target and removal as ours.

Each is ``(task, **options) -> Attribution``. Perturbation methods see a history as one row of P
zeros and ones, and what a row is worth is the task's own value function, so "without an event"
means for them what it means for ours. Gradient methods see the input vectors. Captum's defaults
are kept but for the number of samples, which follows a budget of evaluations.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace

import numpy as np
import torch
from captum.attr import (
    FeatureAblation,
    InputXGradient,
    KernelShap,
    LayerIntegratedGradients,
    Saliency,
    ShapleyValueSampling,
)
from torch import Tensor, nn

from llm_influence.attribution.registry import Attribution, Task

ROWS = 64
"""Rows that Captum evaluates at a time; affects speed and memory alone."""

Explain = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


def feature_ablation(task: Task) -> Attribution:
    """Captum's occlusion of one event at a time."""
    return _by_masks(
        task,
        lambda value, ones, zeros: FeatureAblation(value).attribute(
            ones, zeros, perturbations_per_eval=ROWS
        ),
    )


def shapley_value_sampling(task: Task, *, budget: int = 200) -> Attribution:
    """Captum's permutation sampling; a permutation of P events takes P evaluations."""
    return _by_masks(
        task,
        lambda value, ones, zeros: ShapleyValueSampling(value).attribute(
            ones,
            zeros,
            n_samples=max(1, round(budget / ones.shape[1])),
            perturbations_per_eval=ROWS,
        ),
    )


def kernel_shap(task: Task, *, budget: int = 200) -> Attribution:
    """Captum's weighted regression on sampled sets."""
    return _by_masks(
        task,
        lambda value, ones, zeros: KernelShap(value).attribute(
            ones, zeros, n_samples=budget, perturbations_per_eval=ROWS
        ),
    )


def layer_integrated_gradients(task: Task, *, steps: int = 50) -> Attribution:
    """Captum's integrated gradients of the layer of input vectors, from zero vectors."""
    reader = Reader(task)
    vectors, rows = reader.inputs()
    scores = LayerIntegratedGradients(reader, reader.vectors).attribute(
        vectors,
        torch.zeros_like(vectors),
        additional_forward_args=(rows,),
        n_steps=steps,
        internal_batch_size=max(ROWS, len(rows)),
    )
    return _by_tokens(task, reader, scores.sum(-1), evaluations=2 * steps + 2)


def input_x_gradient(task: Task) -> Attribution:
    """Captum's input times gradient."""
    reader = Reader(task)
    vectors, rows = reader.inputs()
    scores = InputXGradient(reader).attribute(
        vectors.requires_grad_(), additional_forward_args=(rows,)
    )
    return _by_tokens(task, reader, scores.sum(-1), evaluations=3)


def saliency(task: Task) -> Attribution:
    """Captum's absolute gradient, summed over the vector."""
    reader = Reader(task)
    vectors, rows = reader.inputs()
    scores = Saliency(reader).attribute(vectors.requires_grad_(), additional_forward_args=(rows,))
    return _by_tokens(task, reader, scores.sum(-1), evaluations=3)


class Reader(nn.Module):
    """The target as a function of (B, T, H) input vectors and the (B,) rows they belong to.

    Attributes:
        vectors: The layer whose output is explained: the input vectors, as they are.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.vectors = nn.Identity()
        self._task = task

    def inputs(self) -> tuple[Tensor, Tensor]:
        """(N, T, H) input vectors cut from the graph, and (N,) their rows."""
        with torch.no_grad():
            vectors = self._task.model.embed(self._task.batch).detach()
        return vectors, torch.arange(len(vectors))

    def forward(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """(B,) values of the target."""
        batch = self._task.batch
        places = rows.to(batch.input_ids.device)
        chosen = replace(batch, **{f.name: getattr(batch, f.name)[places] for f in fields(batch)})
        prediction = self._task.model(chosen, self.vectors(vectors))
        return self._task.target.values(prediction, rows)


def _by_masks(task: Task, explain: Explain) -> Attribution:
    """Run a perturbation method history by history; draws are seeded by user."""
    scores = []
    for row, size in enumerate(task.sizes):
        with _seeded(task.seed, task.histories[row].user_id):
            found = explain(_value(task, row), torch.ones(1, size), torch.zeros(1, size))
        scores.append(found[0].double().numpy())
    base, full = task.values.ends()
    return Attribution(scores, np.zeros(len(scores)), base, full, task.values.evaluations.copy())


def _value(task: Task, row: int) -> Callable[[Tensor], Tensor]:
    """(B, P) zeros and ones -> (B,) values of that history."""

    def value(kept: Tensor) -> Tensor:
        masks = [np.zeros((0, size), dtype=bool) for size in task.sizes]
        masks[row] = kept.numpy() > 0.5
        return torch.from_numpy(task.values(masks)[row])

    return value


def _by_tokens(task: Task, reader: Reader, tokens: Tensor, *, evaluations: int) -> Attribution:
    """Sum (N, T) token scores by event."""
    scores, prompt = task.batch.event_sums(tokens.detach() * task.batch.attention_mask)
    vectors, rows = reader.inputs()
    with torch.no_grad():
        base, full = reader(torch.zeros_like(vectors), rows), reader(vectors, rows)
    return Attribution(
        scores=task.split(scores.cpu().double().numpy()),
        prompt=prompt.cpu().double().numpy(),
        base=base.cpu().double().numpy(),
        full=full.cpu().double().numpy(),
        evaluations=np.full(len(rows), evaluations, dtype=np.int64),
    )


@contextmanager
def _seeded(seed: int, user: str) -> Iterator[None]:
    """Torch's random state, which Captum draws from, made of the seed and the user."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{seed} {user}".encode()))
        yield
