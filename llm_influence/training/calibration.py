"""Scales of the memory, fitted on validation examples.

The memory knows the training events, and the language model was trained on them too. How far each
is to be trusted shows on other events alone. So three numbers are chosen on validation by the
likelihood of the true items: the scale s of associations, the scale t of transitions and revisits,
and the exponent w, which is below 1 for a language model that is too sure.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from llm_influence.config.training import EvaluationConfig
from llm_influence.data.splits import EvaluationSet
from llm_influence.evaluation.evaluate import Examples
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.memory import Memory, add_excitation
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import collate

logger = logging.getLogger(__name__)

ASSOCIATION_SCALES = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
"""Scales s that are tried; associations have a spread of about 1 over the items."""
EXCITATION_SCALES = (0.0, 0.03, 0.06, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 4.0, 8.0, 30.0)
"""Scales t that are tried; 1 is that of the memory alone, with popularity as its base rate."""
EXPONENTS = (0.4, 0.55, 0.7, 0.85, 1.0, 1.2)
"""Exponents w that are tried; below 1 for a language model that is too sure."""
MOST_EXAMPLES = 2000
MOST_SCORES = 100_000_000
"""At most so many examples, and scores of examples times items, are read."""


@torch.no_grad()
def fit_scales(model: InfluenceModel, rows: EvaluationSet, config: EvaluationConfig) -> None:
    """Set the scales of a model's memory; nothing happens without memory or examples.

    The scales with the highest mean log-probability of the true items among the candidates win,
    the smaller ones of equal triples. Examples whose true item is no candidate are left out.

    Args:
        model: The model; it is in eval mode while examples are read.
        rows: Validation examples; of many, every n-th one is read.
        config: The protocol: whether seen items are candidates.
    """
    memory = model.item_head.memory
    if memory is None or not len(rows):
        return
    most = max(1, min(MOST_EXAMPLES, MOST_SCORES // model.num_items))
    rows = rows.select(torch.linspace(0, len(rows) - 1, min(most, len(rows))).long().numpy())
    tried = (ASSOCIATION_SCALES, EXPONENTS, EXCITATION_SCALES)
    sums = torch.zeros([len(values) for values in tried], dtype=torch.float64)
    with inference(model):
        for likelihoods in _likelihoods(model, memory, rows, config):
            sums += likelihoods
    s, w, t = (
        values[place]
        for values, place in zip(
            tried, np.unravel_index(int(sums.argmax()), sums.shape), strict=True
        )
    )
    memory.scales.copy_(torch.tensor([s, t, w]))
    logger.info("memory: scales s %g, t %g, w %g", s, t, w)


def _likelihoods(
    model: InfluenceModel, memory: Memory, rows: EvaluationSet, config: EvaluationConfig
) -> Iterator[Tensor]:
    """Summed log-probabilities of the true items of a batch for all triples (s, w, t)."""
    examples = Examples.of(model, rows, config)
    size = max(1, min(config.batch_size, MOST_SCORES // 4 // model.num_items))
    for start in range(0, len(rows), size):
        numbers = range(start, min(start + size, len(rows)))
        histories = examples.histories(numbers)
        answers = examples.answers(numbers, histories)
        batch = collate(model.encoder.encode(histories)).to(model.device)
        query, targets = model.query(batch), answers["labels"].to(model.device)
        seen = answers.get("seen", torch.full((len(targets), 1), -1)).to(model.device)
        known = ~(seen == targets[:, None]).any(dim=1)
        records, presence = query.records, query.presence
        if records is None or presence is None:
            return
        logits = model.item_head.language_logits(query, model.item_vectors()).float()
        associated = memory.associated(records, presence, 0, memory.items)
        mass = memory.mass(records, presence)
        places = torch.cat([targets[:, None], seen.clamp(min=0)], dim=1)
        excited = memory.excited(records, presence, 0, memory.items).gather(1, places)
        sums = []
        for s, w in itertools.product(ASSOCIATION_SCALES, EXPONENTS):
            memory.scales.copy_(torch.tensor([s, 0.0, w]))
            base = memory.base(logits, associated).log_softmax(dim=1).gather(1, places)
            for t in EXCITATION_SCALES:
                logs = add_excitation(base, t * excited, t * mass).double()
                # seen items occur once in the list of seen ones
                hidden = (logs[:, 1:].exp() * (seen >= 0)).sum(dim=1).clamp(max=1 - 1e-9)
                sums.append(((logs[:, 0] - (-hidden).log1p()) * known).sum())
        shape = (len(ASSOCIATION_SCALES), len(EXPONENTS), len(EXCITATION_SCALES))
        yield torch.stack(sums).reshape(shape).cpu()
