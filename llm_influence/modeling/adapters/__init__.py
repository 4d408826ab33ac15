"""What is trained inside the backbone; one file and one registration a kind.

adapter      what every kind promises, and the registry
places       which modules of a backbone are keys, values and output projections
plain        full, frozen
peft_adapter what PEFT's kinds share
low_rank     lora, dora, rslora
adalora      low-rank updates whose ranks are pruned while they train
ia3          learned scales of keys, values and feed-forward activations
bottleneck   small networks after the output projections
"""

from llm_influence.modeling.adapters import adalora, bottleneck, ia3, low_rank, plain
from llm_influence.modeling.adapters.adapter import KINDS, Adapter, Body, attach_adapter

__all__ = [
    "KINDS",
    "Adapter",
    "Body",
    "adalora",
    "attach_adapter",
    "bottleneck",
    "ia3",
    "low_rank",
    "plain",
]
