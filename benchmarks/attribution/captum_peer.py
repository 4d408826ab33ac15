"""Captum's methods at their best setting on the function that we explain.

An input is a row of ones, one an event, and the baseline a row of zeros, so that an ablated
feature is a removed event. `perturbations_per_eval` hands the function many masks at a time; it
runs them in batches. Captum permits at most one permutation a call of `ShapleyValueSampling`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import torch
from captum.attr import (
    FeatureAblation,
    KernelShap,
    LayerIntegratedGradients,
    ShapleyValueSampling,
)
from torch import Tensor, nn

from benchmarks.attribution.masked_function import Floats, Function
from llm_influence.attribution.target import BoundTarget
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import EncodedBatch, collate
from llm_influence.types import History


def shapley_sampling(function: Function, evaluations: int, seed: int) -> Floats:
    """`ShapleyValueSampling`: a permutation costs E evaluations, all in one call."""
    torch.manual_seed(seed)
    permutations = max(1, round((evaluations - 1) / function.size))
    method = ShapleyValueSampling(function.tensor)
    ones = torch.ones(1, function.size)
    found = method.attribute(
        ones, baselines=0.0, n_samples=permutations, perturbations_per_eval=function.size
    )
    return found[0].double().numpy()


def kernel_shap(function: Function, evaluations: int, seed: int) -> Floats:
    """`KernelShap`: all samples in one call, beside one of the history as it is."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    samples = max(function.size + 2, evaluations - 1)
    method = KernelShap(function.tensor)
    ones = torch.ones(1, function.size)
    found = method.attribute(ones, baselines=0.0, n_samples=samples, perturbations_per_eval=samples)
    return found[0].double().numpy()


def feature_ablation(function: Function, per_eval: int) -> Floats:
    """`FeatureAblation`: f(all) - f(all but one) for every event, ``per_eval`` masks a call."""
    method = FeatureAblation(function.tensor)
    ones = torch.ones(1, function.size)
    found = method.attribute(ones, baselines=0.0, perturbations_per_eval=per_eval)
    return found[0].double().numpy()


Baseline = Callable[[InfluenceModel, EncodedBatch, Tensor], Tensor]
"""Makes the (1, T, H) vectors that a path begins with, of a batch and its input vectors."""


class PathInputs:
    """One history's input vectors and their baseline as an embedding layer of 2T rows.

    Captum's `LayerIntegratedGradients` walks in the output of a layer, from what the layer makes
    of the baseline ids to what it makes of the input ids. Rows 0 to T - 1 are the input vectors,
    rows T to 2T - 1 those of the baseline.

    Args:
        model: The model, in eval mode.
        history: The history.
        target: Its target.
        baseline: Where the path begins.
    """

    def __init__(
        self, model: InfluenceModel, history: History, target: BoundTarget, baseline: Baseline
    ) -> None:
        self._model, self._target = model, target
        self.batch = collate(model.encoder.encode([history])).to(model.device)
        with torch.no_grad():
            inputs = model.embed(self.batch)
            rows = torch.cat([inputs[0], baseline(model, self.batch, inputs)[0]])
        self.layer = nn.Embedding.from_pretrained(rows, freeze=False)
        length = inputs.shape[1]
        self.inputs = torch.arange(length, device=rows.device)[None]
        self.baselines = self.inputs + length

    def value(self, ids: Tensor) -> Tensor:
        """(B,) target of (B, T) rows of the layer."""
        columns = {part.name: getattr(self.batch, part.name) for part in fields(EncodedBatch)}
        repeated = EncodedBatch(
            **{name: rows.expand(len(ids), *rows.shape[1:]) for name, rows in columns.items()}
        )
        prediction = self._model(repeated, self.layer(ids))
        return self._target.values(prediction, torch.zeros(len(ids), dtype=torch.long))


def mean_baseline(model: InfluenceModel, batch: EncodedBatch, inputs: Tensor) -> Tensor:
    """(1, T, H): event tokens become the mean vector of their field, frame tokens stay.

    The baseline of our own method, `integrated_gradients`, written again from its definition.
    """
    vectors = model.embeddings(slice(None))
    field_of = torch.from_numpy(model.encoder.token_cache.fields).to(vectors.device)
    start = inputs.clone()
    for place in torch.nonzero(batch.event_index[0] >= 0)[:, 0].tolist():
        field = batch.field_index[0, place]
        start[0, place] = vectors[field_of == field].mean(dim=0)
    return start


def integrated_gradients(
    path: PathInputs, *, steps: int, internal_batch_size: int
) -> tuple[Floats, float]:
    """`LayerIntegratedGradients`: (E,) scores of the events, and the frame's score."""
    found = LayerIntegratedGradients(path.value, path.layer).attribute(
        path.inputs,
        baselines=path.baselines,
        n_steps=steps,
        internal_batch_size=internal_batch_size,
    )
    scores, frame = path.batch.event_sums(found.detach().sum(dim=-1))
    return scores[0].double().cpu().numpy(), float(frame[0])
