"""Predictions that do not hang on a user's feature: a penalty of consistency.

Every window is also read with one of the features changed to another value, all else the same, and

    weight * (KL(p | q) + KL(q | p)) / 2

is added for every label, where p and q are the chances of the next item as it is and as changed
(the counterfactual logit pairing of Garg et al. 2019, arXiv:1809.10610, on distributions). What the
events say is left alone: groups whose histories differ still get different predictions.

Costs two more passes: about three times the time of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from llm_influence.config import FairnessConfig, ItemHeadConfig
from llm_influence.errors import ConfigError, choices
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import Encoder
from llm_influence.types import History


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
        self._values = dict(encoder.lexicon.features)
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
