"""The loss: what comes next, after every event of every window, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.training.windows import IGNORE


class NextEventObjective(nn.Module):
    """Weighted cross-entropy of the next item and the next behaviour.

    Sums over positions are divided by the number of labels in the whole optimiser step, over all
    processes and micro-batches, so the loss does not depend on how a step is cut up.

    Args:
        model: The model that is trained.
        label_smoothing: Of the item loss.
    """

    def __init__(self, model: InfluenceModel, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(
        self,
        labels: Tensor,
        behavior_labels: Tensor,
        asked_at: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """The loss of one micro-batch.

        Args:
            labels: (B, L) items to be predicted, by code.
            behavior_labels: (B, L) their events' behaviours, by code.
            asked_at: (B, L) place of the token from whose state each is predicted.
            num_items_in_batch: Labels of the whole step; default: of this micro-batch.
            inputs: The tensors of an `EncodedBatch`.
        """
        batch = EncodedBatch(**inputs)
        states = self.model.states(batch)
        rows = torch.arange(len(states), device=states.device)[:, None]
        known = labels != IGNORE
        predicted = self.model.heads(states[rows, asked_at][known])
        config = self.model.config
        loss = config.item_head.weight * F.cross_entropy(
            predicted.item_logits.float(),
            labels[known],
            label_smoothing=self.label_smoothing,
            reduction="sum",
        ) + config.behavior_head.weight * F.cross_entropy(
            predicted.behavior_logits.float(), behavior_labels[known], reduction="sum"
        )
        penalty = self.model.adapter.penalty()
        if penalty is not None:  # by labels, so that a step adds it once, however it is cut
            loss = loss + penalty * known.sum()
        return {"loss": loss / (known.sum() if num_items_in_batch is None else num_items_in_batch)}
