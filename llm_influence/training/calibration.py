"""Scales of the memory and the lift of later items, fitted on validation examples.

The memory knows the training events, and the language model was trained on them too. How far each
is to be trusted shows on other events alone. So three numbers are chosen on validation by the
likelihood of the true items: the scale s of associations, the scale t of transitions and revisits,
and the exponent w, which is below 1 for a language model that is too sure.

An item that is added later has vectors and links of its nearest known items. A mean of others
predicts less sharply than what is learned for the item itself, so new items would be ranked too
low. The lift corrects this. It is fitted on known items alone, which play new ones in turn.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional as F

from llm_influence.config.training import EvaluationConfig
from llm_influence.data.splits import EvaluationSet
from llm_influence.evaluation.evaluate import Examples
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.gates import ITEM
from llm_influence.modeling.item_links import ItemLinks, nearest_others
from llm_influence.modeling.memory import Memory
from llm_influence.modeling.memory_fit import MOST_ITEMS
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import collate

logger = logging.getLogger(__name__)

ASSOCIATION_SCALES = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
"""Scales s that are tried; associations have a spread of about 1 over the items."""
EXCITATION_SCALES = (0.0, 0.03, 0.06, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 4.0, 8.0, 30.0)
"""Scales t that are tried; 1 is that of the memory alone, with popularity as its base rate."""
EXPONENTS = (0.4, 0.55, 0.7, 0.85, 1.0, 1.2)
"""Exponents w that are tried; below 1 for a language model that is too sure."""
LIFTS = torch.arange(-1, 3.01, 0.05, dtype=torch.float64)
"""Lifts that are tried, in log-odds."""
PARTS = 10
"""A catalogue is divided into so many parts; the items of one part at a time play new ones."""
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
    rows = _some(rows, model.num_items)
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


@torch.no_grad()
def fit_lift(model: InfluenceModel, rows: EvaluationSet, config: EvaluationConfig) -> None:
    """Set the lift of items that are added later: that with the highest mean log-probability.

    A tenth of the items at a time has the vectors and links that new items would have. Nothing
    happens without memory, texts or examples, and for more than `MOST_ITEMS` items.

    Args:
        model: The model; it is in eval mode while examples are read.
        rows: Validation examples; of many, every n-th one is read.
        config: The protocol: whether seen items are candidates.
    """
    memory, items = model.item_head.memory, model.num_items
    if memory is None or not len(rows) or not model.embeddings.has_words:
        return
    if not 1 < items <= MOST_ITEMS:
        return
    nearest = nearest_others(model.embeddings.words[model.first_item :])
    links = ItemLinks.of(csr_array(memory.associations.to_others() @ nearest.T)).to(model.device)
    order = torch.randperm(items, generator=torch.Generator().manual_seed(0))
    parts = F.one_hot(order % PARTS, PARTS).to(model.device, torch.float64)
    lifts = LIFTS.to(model.device)
    total = torch.zeros(len(LIFTS), dtype=torch.float64, device=model.device)
    with inference(model):
        vectors = model.item_vectors(), model.embeddings.as_new()
        for query, _, candidates, known in _batches(model, _some(rows, items), config):
            if query.records is None or query.presence is None:
                return
            own, new = (model.item_head.language_logits(query, table) for table in vectors)
            weights = memory.recency(query.records, query.presence)
            sums = [
                table.spread(query.records[..., ITEM], weights, 0, items)
                for table in (memory.associations, links)
            ]
            own, new = memory.base(own.float(), sums[0]), memory.base(new.float(), sums[1])
            top = torch.maximum(own, new).amax(dim=1, keepdim=True)
            masses = [(logits - top).double().exp() * candidates for logits in (own, new)]
            rest = masses[0].sum(dim=1, keepdim=True) - masses[0] @ parts  # (N, parts)
            whole = rest[..., None] + (masses[1] @ parts)[..., None] * lifts.exp()
            # an example's target plays a new item once, in one of the parts
            total += (lifts - whole.log().sum(dim=1))[known].sum(dim=0)
    memory.lift.fill_(float(LIFTS[int(total.argmax())]))
    logger.info("memory: lift of later items %g", float(memory.lift))


def _some(rows: EvaluationSet, items: int) -> EvaluationSet:
    """Of many examples, every n-th one."""
    most = max(1, min(MOST_EXAMPLES, MOST_SCORES // items))
    return rows.select(torch.linspace(0, len(rows) - 1, min(most, len(rows))).long().numpy())


def _batches(
    model: InfluenceModel, rows: EvaluationSet, config: EvaluationConfig
) -> Iterator[tuple[QueryState, Tensor, Tensor, Tensor]]:
    """Of N examples at a time: input of the head, (N,) targets, (N, I) and (N,) candidates.

    The third says of each item whether it is a candidate, and the last of each target.
    """
    examples = Examples.of(model, rows, config)
    size = max(1, min(config.batch_size, MOST_SCORES // 4 // model.num_items))
    for start in range(0, len(rows), size):
        numbers = range(start, min(start + size, len(rows)))
        histories = examples.histories(numbers)
        answers = examples.answers(numbers, histories)
        batch = collate(model.encoder.encode(histories)).to(model.device)
        query, targets = model.query(batch), answers["labels"].to(model.device)
        seen = answers.get("seen", torch.full((len(targets), 1), -1)).to(model.device)
        candidates = torch.ones(len(targets), model.num_items + 1, device=model.device).bool()
        candidates.scatter_(1, seen.where(seen >= 0, model.num_items), False)
        candidates = candidates[:, :-1]
        yield query, targets, candidates, candidates.gather(1, targets[:, None]).squeeze(1)


def _likelihoods(
    model: InfluenceModel, memory: Memory, rows: EvaluationSet, config: EvaluationConfig
) -> Iterator[Tensor]:
    """Summed log-probabilities of the true items of a batch for all triples (s, w, t)."""
    for query, targets, candidates, known in _batches(model, rows, config):
        records, presence = query.records, query.presence
        if records is None or presence is None:
            return
        logits = model.item_head.language_logits(query, model.item_vectors()).float()
        associated = memory.associated(records, presence, 0, memory.items)
        excited = memory.excited(records, presence, 0, memory.items).double()
        target_excited = excited.gather(1, targets[:, None]).squeeze(1)
        excited = (excited * candidates).sum(dim=1)
        sums = []
        for s, w in itertools.product(ASSOCIATION_SCALES, EXPONENTS):
            memory.scales.copy_(torch.tensor([s, 0.0, w]))
            base = memory.base(logits, associated).log_softmax(dim=1)
            target_base = base.gather(1, targets[:, None]).squeeze(1).double().exp()
            base = base.masked_fill(~candidates, -torch.inf).logsumexp(dim=1).double().exp()
            for t in EXCITATION_SCALES:
                logs = (target_base + t * target_excited).log() - (base + t * excited).log()
                sums.append(logs[known].sum())
        shape = (len(ASSOCIATION_SCALES), len(EXPONENTS), len(EXCITATION_SCALES))
        yield torch.stack(sums).reshape(shape).cpu()
