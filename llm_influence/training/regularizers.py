"""Adversarial training on input vectors: the fast gradient method.

``L(x) + weight * L(x + r)``, where ``r = epsilon g / |g|`` and ``g`` is the gradient of ``L`` by
the input vectors ``x`` of a window (Miyato, Dai & Goodfellow 2017, arXiv:1605.07725). ``r`` is a
constant: no gradient flows through it. Only what is read is moved, no weight is ever touched.

Costs a second pass forward and two more backward: about two and a half times the time of a step.

The contrastive loss: a user's history is recognised in either of two views of it.

Predictions that do not hang on a user's feature: a penalty of consistency.

Every window is also read with one of the features changed to another value, all else the same, and

    weight * (KL(p | q) + KL(q | p)) / 2

is added for every label, where p and q are the chances of the next item as it is and as changed
(the counterfactual logit pairing of Garg et al. 2019, arXiv:1809.10610, on distributions). What the
events say is left alone: groups whose histories differ still get different predictions.

Costs two more evaluations: about three times the time of a step.

Inverse propensity weights: labels of items that were rarely shown count more.

A log shows what people did among what they were shown. Where an item comes next with a chance
proportional to (what the user wants) x (its propensity), labels weighted by 1 / propensity are
those of a log without that factor (Schnabel et al. 2016, arXiv:1602.05352; popularity as
propensity: Saito et al. 2020, arXiv:1909.03601).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from llm_influence.config.model import ItemHeadConfig
from llm_influence.config.training import AdversarialConfig, FairnessConfig, PropensityConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ConfigError, DataError, SchemaError, choices
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import Encoder
from llm_influence.types import FloatArray, History, IntArray


def adversarial_loss(
    loss: Callable[[Tensor], Tensor], vectors: Tensor, config: AdversarialConfig
) -> Tensor:
    """The loss at ``vectors`` and, if that is on, at the worst place near them.

    Args:
        loss: Of (B, T, H) input vectors; a sum over the windows, so that each window's gradient is
            its own and the move does not depend on what else is in the batch.
        vectors: (B, T, H) input vectors.
        config: Length of the move and weight of the second loss.
    """
    if not config.epsilon:
        return loss(vectors)
    if not vectors.requires_grad:  # embeddings that are not trained
        vectors = vectors.detach().requires_grad_()
    usual = loss(vectors)
    (gradient,) = torch.autograd.grad(usual, vectors, retain_graph=True)
    return usual + config.weight * loss(vectors + perturbation(gradient, config.epsilon))


def perturbation(gradient: Tensor, epsilon: float) -> Tensor:
    """(B, T, H) moves of length ``epsilon`` over all of a row; 0 where it has no gradient."""
    gradient = gradient.detach().float()
    length = gradient.flatten(1).norm(dim=1)[:, None, None]
    return torch.where(length > 0, epsilon * gradient / length, torch.zeros_like(gradient))


NOBODY = -1
"""Owner of a window without events, which has no views: it is no anchor and no negative."""


def contrastive_loss(views: Tensor, owners: Tensor, temperature: float) -> Tensor:
    """(B,) InfoNCE of each window, the mean over its two views (CL4SRec, arXiv:2010.14395).

    A view's negatives are the views of other users' windows in the micro-batch, those of all
    processes: they are gathered with their gradients.

    Args:
        views: (2, B, H) states after the two views of B windows.
        owners: (B,) the window's user; windows of the same user are no negatives of each other.
        temperature: Cosines are divided by it.
    """
    views = F.normalize(views.float(), dim=-1)
    candidates, of_candidates = _from_all(views.flatten(0, 1)), _from_all(owners.repeat(2))
    negative = (owners[:, None] != of_candidates) & (of_candidates != NOBODY)
    losses = [
        info_nce(anchor, twin, candidates, negative, temperature)
        for anchor, twin in ((views[0], views[1]), (views[1], views[0]))
    ]
    return torch.stack(losses).mean(dim=0) * (owners != NOBODY)


def info_nce(
    anchors: Tensor, twins: Tensor, candidates: Tensor, negative: Tensor, temperature: float
) -> Tensor:
    """(A,) ``-log(e^{a.t / tau} / (e^{a.t / tau} + sum of e^{a.c / tau} over its negatives))``.

    van den Oord et al. 2018 (arXiv:1807.03748); with twins from the same batch it is NT-Xent.

    Args:
        anchors: (A, H).
        twins: (A, H), the one that each anchor should find.
        candidates: (C, H).
        negative: (A, C) bool, which candidates are an anchor's negatives.
        temperature: tau.
    """
    own = (anchors * twins).sum(dim=-1, keepdim=True) / temperature
    others = (anchors @ candidates.T / temperature).masked_fill(~negative, -torch.inf)
    return torch.cat([own, others], dim=1).logsumexp(dim=1) - own[:, 0]


def _from_all(rows: Tensor) -> Tensor:
    """(P * N, ...) the (N, ...) rows of all P processes, through which gradients flow back."""
    if PartialState().num_processes == 1:
        return rows
    return torch.cat(all_gather(rows))


class Swaps:
    """Draws which feature of a window's user becomes what.

    A draw depends on the seed, the epoch and the window alone, never on its batch or process.

    Args:
        config: The features; none are changed where the weight is 0.
        encoder: Knows the values that training has.
        seed: Of all draws.

    Raises:
        ConfigError: The template does not say a feature, or it has a single value.
    """

    def __init__(self, config: FairnessConfig, encoder: Encoder, seed: int = 0) -> None:
        self.on = config.weight > 0
        self._names, self._seed = tuple(config.features) if self.on else (), seed
        self._values = dict(encoder.vocabulary.features)
        for name in self._names:
            if len(self._values.get(name, ())) < 2:
                known = [each for each, values in self._values.items() if len(values) > 1]
                raise ConfigError(
                    f"feature {name!r}",
                    where="train.fairness.features",
                    expected=f"a feature that the template says, with two values: "
                    f"{choices(known, name)}",
                    fix="correct the name; a template without the feature needs no penalty",
                )

    def of(self, history: History, *, epoch: int, user: int, start: int) -> History:
        """The history of the same user with one feature changed."""
        random = np.random.default_rng([self._seed, 7, epoch, user, start])
        name = self._names[random.integers(len(self._names))]
        others = [value for value in self._values[name] if value != history.user.get(name)]
        changed = {**history.user, name: others[random.integers(len(others))]}
        return replace(history, user=MappingProxyType(changed))


def check_scores(config: FairnessConfig, head: ItemHeadConfig, items: int) -> None:
    """Refuse a penalty on chances that training does not compute.

    Raises:
        ConfigError: Items are not predicted, or a step scores a few of them only.
    """
    if config.weight and (not head.weight or head.loss_for(items) != "full"):
        raise ConfigError(
            f"train.fairness.weight is {config.weight}",
            where="model.item_head",
            expected="items predicted with loss 'full': the penalty compares chances of all items",
            fix="set model.item_head.loss to full and its weight above 0, or leave train.fairness",
        )


def inconsistency(model: InfluenceModel, states: Sequence[Tensor]) -> Tensor:
    """Summed divergence of item chances from two (N, Q) states each."""
    items = model.item_vectors()
    one, other = (model.item_head(each, items).float().log_softmax(dim=-1) for each in states)
    forth = F.kl_div(one, other, reduction="sum", log_target=True)
    back = F.kl_div(other, one, reduction="sum", log_target=True)
    return (forth + back) / 2


def label_weights(
    config: PropensityConfig, catalogue: Catalogue, log: BehaviorLog
) -> FloatArray | None:
    """(I,) float32, how much a label counts by its item; None where all count alike.

    ``1 / max(propensity, clip)``, divided by the mean over the labels of ``log``: clipped, so that
    no rare item decides alone, and self-normalised, so that the learning rate means what it does
    without weights.

    Raises:
        SchemaError: The item table has no such column, or one that is no number.
        DataError: An item of training has no exposure above 0.
    """
    if config.source == "none":
        return None
    counts = np.bincount(log.items, minlength=len(catalogue))
    found = counts if config.column is None else _exposures(config.column, catalogue, counts)
    power = config.power or (0.5 if config.column is None else 1.0)
    chances = (found / found.max()) ** power
    weights = 1 / np.maximum(chances, config.clip)
    mean = (weights @ counts) / counts.sum()
    return (weights / mean).astype(np.float32)


def _exposures(name: str, catalogue: Catalogue, counts: IntArray) -> FloatArray:
    """(I,) the column; items that never occur may have none."""
    table, where = catalogue.table, "train.propensity.column"
    if name not in table.column_names:
        raise SchemaError(
            f"the item table has no column {name!r}",
            where=where,
            expected=choices(table.column_names, name),
            fix="name the column that says how often each item was shown",
        )
    kind = table[name].type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise SchemaError(
            f"column {name!r} has type {kind}",
            where=where,
            expected="numbers",
            fix="write the exposures as numbers",
        )
    found = table[name].cast(pa.float64()).fill_null(0).to_numpy()
    bad = (counts > 0) & ~((found > 0) & np.isfinite(found))
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"item {catalogue.ids[row].as_py()!r} occurs in training and its {name!r} is "
            f"{table[name][row].as_py()}",
            where=where,
            expected="a number above 0 for every item that was seen",
            fix="correct the exposures",
        )
    return np.where(np.isfinite(found), np.maximum(found, 0), 0)
