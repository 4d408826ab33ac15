"""Methods that read the attention weights.

weights            the weights of every layer, and shares of tokens summed to events
last_layer         where the last layer looks
rollout            the product of all layers
flow               the greatest flow through all layers
value_norm         weights times the length of what they carry
gradient_weighted  weights times the target's gradient with respect to them
"""

from llm_influence.attribution.attention import (
    flow,
    gradient_weighted,
    last_layer,
    rollout,
    value_norm,
)
from llm_influence.attribution.attention.weights import eager_attention

__all__ = ["eager_attention", "flow", "gradient_weighted", "last_layer", "rollout", "value_norm"]
