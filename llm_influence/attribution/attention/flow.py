"""Attention flow: the most that can flow from an event to the prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from llm_influence.attribution.attention.weights import attention_weights, shares
from llm_influence.attribution.registry import register
from llm_influence.attribution.task import Attribution, Task
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.types import FloatArray, IntArray

UNIT = 2**24
"""What a weight of 1 is in whole numbers: maximum flow is exact in these (scipy takes int32)."""


@register(
    name="attention_flow",
    family="attention",
    units="share",
    removals=(),
    cost="1 forward pass with attention weights, 2 for the completeness gap, and E + 1 maximum "
    "flows in a graph of layers x T x T / 2 edges",
    estimates="the most attention that the layers could carry from the event to the prediction",
    equation="a_i = maximum flow from the query's last state to the tokens of i together, "
    "capacities (mean over heads of A_l + I) / 2; divided by the sum over events and frame",
    paper="Abnar & Zuidema 2020, arXiv:2005.00928",
    caution="Never negative, blind to values; slow for long texts (a flow in a graph of millions "
    "of edges for every event).",
)
def attention_flow(task: Task) -> Attribution:
    """Maximum flow from the query's final state down to each event's input tokens.

    Nodes are the states of every token after every layer; an edge carries at most what a layer's
    mean attention (half) and its residual connection (half) let through. An event's tokens are one
    sink, so what they share is not counted twice. Capacities are rounded to multiples of 2^-24.
    """

    def read(batch: EncodedBatch, _: Tensor) -> tuple[Tensor, Tensor]:
        layers = [
            weights.mean(dim=1).double().cpu() for weights in attention_weights(task.model, batch)
        ]
        flows = torch.zeros(len(batch.num_events), batch.ends.shape[1], dtype=torch.float64)
        for row, (last, events) in enumerate(
            zip(batch.last().tolist(), batch.num_events.tolist(), strict=True)
        ):
            seen = slice(last + 1)
            owners = batch.event_index[row, seen].cpu().numpy()
            found = greatest_flows([a[row, seen, seen].numpy() for a in layers], owners, events)
            flows[row, : events + 1] = torch.from_numpy(found)
        return flows[:, 1:], flows[:, 0]

    return shares(task, read)


def greatest_flows(layers: Sequence[FloatArray], owners: IntArray, events: int) -> FloatArray:
    """Maximum flows from the last token's final state to the frame and to each event.

    Args:
        layers: (T, T) mean attention of each layer, first layer first.
        owners: (T,) event of each token, -1 for the frame.
        events: Number E of events.

    Returns:
        (E + 1,) flows, the frame's first; 0 for a frame without tokens.
    """
    tokens, depth = len(owners), len(layers)
    rows, columns, capacities = [], [], []
    for layer, weights in enumerate(layers):
        mixed = np.rint((weights + np.eye(tokens)) / 2 * UNIT).astype(np.int64)
        state, source = np.nonzero(mixed)
        rows.append((layer + 1) * tokens + state)
        columns.append(layer * tokens + source)
        capacities.append(mixed[state, source])
    sinks = (depth + 1) * tokens + 1 + np.arange(-1, events)
    rows.append(np.arange(tokens))
    columns.append(sinks[owners + 1])
    capacities.append(np.full(tokens, 2 * UNIT))  # more than ever leaves the query
    size = (depth + 1) * tokens + events + 1
    edges = (np.concatenate(rows), np.concatenate(columns))
    graph = csr_array(
        (np.concatenate(capacities).astype(np.int32), edges), shape=(size, size), dtype=np.int32
    )
    query = depth * tokens + tokens - 1
    return np.array([maximum_flow(graph, query, int(sink)).flow_value for sink in sinks]) / UNIT
