"""Metrics of influence: ``(Game, Scored) -> (N,)``, one number a history, nan where undefined.

registry       every metric with what there is to know about it
erasure        comprehensiveness and sufficiency, at one size and averaged
curves         deletion and insertion AUC, and the area between the two orders of removal
linearity      LDS and infidelity on held-out sets
decisions      what removals do to the recommendation: POS, NEG, counterfactual sets
stability      sensitivity to a jitter of gaps, and the loss of structure with the weights
exactness      the completeness gap, and agreement with exact Shapley values
"""

from llm_influence.faithfulness.metrics import (  # importing a family registers its metrics
    curves,
    decisions,
    erasure,
    exactness,
    linearity,
    stability,
)
from llm_influence.faithfulness.metrics.registry import METRICS, find_metrics

FAMILIES = (erasure, curves, linearity, decisions, stability, exactness)

__all__ = ["METRICS", "find_metrics"]
