"""Attention of the last layer: where the model looked last."""

from __future__ import annotations

from torch import Tensor

from llm_influence.attribution.attention.weights import at_query, attention_weights, shares
from llm_influence.attribution.registry import register
from llm_influence.attribution.task import Attribution, Task
from llm_influence.rendering.batch import EncodedBatch


@register(
    name="attention_last",
    family="attention",
    units="share",
    removals=(),
    cost="1 forward pass with attention weights, and 2 for the completeness gap",
    estimates="how much the query attends to the event's tokens in the last layer",
    equation="a_i = sum over tokens t of i of mean over heads of A_L[query, t]",
    paper="Jain & Wallace 2019, arXiv:1902.10186 (on why it is no explanation)",
    caution="The last layer's states have long been mixed: a state at an event is not that event.",
)
def attention_last(task: Task) -> Attribution:
    """Attention weights of the last layer, averaged over heads, at the last token.

    Shares of events and frame add up to 1.
    """

    def read(batch: EncodedBatch, _: Tensor) -> tuple[Tensor, Tensor]:
        return at_query(batch, attention_weights(task.model, batch)[-1].mean(dim=1))

    return shares(task, read)
