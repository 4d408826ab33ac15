"""Reference points: scores that know nothing of the model. A method must beat them to mean more."""

from __future__ import annotations

import numpy as np
import torch

from llm_influence.attribution.registry import Attribution, Task, generators, register
from llm_influence.errors import ExplanationError


@register(
    name="random",
    family="reference",
    units="share",
    removals=(),
    cost="2 model evaluations, for the completeness gap alone",
    estimates="nothing",
    equation="a drawn from a flat Dirichlet",
    paper="",
    caution="A floor for comparisons, never an explanation.",
)
def random_scores(task: Task) -> Attribution:
    """Shares drawn uniformly from the simplex; seeded by user, so any batch gives the same."""
    pairs = zip(generators(task), task.sizes, strict=True)
    return _shares(task, [draw.dirichlet(np.ones(size)) for draw, size in pairs])


@register(
    name="recency",
    family="reference",
    units="share",
    removals=(),
    cost="2 model evaluations, for the completeness gap alone",
    estimates="how recent an event is",
    equation="a_i = 2^(i - E) / sum of all",
    paper="",
    caution="Often near the truth for the wrong reason: sequence models do favour the last events.",
)
def recency(task: Task) -> Attribution:
    """Shares that halve with every step into the past."""
    halves = [0.5 ** np.arange(size, dtype=np.float64)[::-1] for size in task.sizes]
    return _shares(task, [half / half.sum() for half in halves])


@register(
    name="popularity",
    family="reference",
    units="share",
    removals=(),
    cost="2 model evaluations, for the completeness gap alone",
    estimates="how popular an event's item is",
    equation="a_i = events of training with i's item / sum of all",
    paper="",
    caution="Knows neither the user nor the target.",
)
def popularity(task: Task) -> Attribution:
    """Shares by how many events of training each event's item has; even where none has any.

    Raises:
        ExplanationError: The model was saved before counts were kept.
    """
    vocabulary = task.model.encoder.vocabulary
    if vocabulary.counts is None:
        raise ExplanationError(
            "the model does not know how popular its items are",
            where="method 'popularity'",
            expected="a model folder with counts.npy",
            fix="fine-tune again with this version, or use another reference",
        )
    return _shares(
        task, [_parts(vocabulary.counts[vocabulary.item_codes(h)]) for h in task.histories]
    )


@register(
    name="item_similarity",
    family="reference",
    units="share",
    removals=(),
    cost="2 model evaluations, for the completeness gap alone",
    estimates="how alike an event's item and the target are, by their texts",
    equation="a_i = max(0, cos(text of i's item, text of the target)) / sum of all",
    paper="",
    caution="Knows neither behaviours nor times. Of a contrast or slate the first item counts.",
)
def item_similarity(task: Task) -> Attribution:
    """Shares by cosine of text vectors; even where no item is like the target.

    The vectors are those that the untuned backbone gives to the items' texts, less their mean.

    Raises:
        ExplanationError: The target is a behaviour, to which no item is alike; or the model knows
            its items by learned vectors alone (a recurrent backbone without words).
    """
    if task.target.kind == "behavior":
        raise ExplanationError(
            f"the target is a {task.target.kind}",
            where="method 'item_similarity'",
            expected="an item, a contrast of two, or a slate",
            fix="explain an item, or use another reference",
        )
    if not task.model.units.has_words:
        raise ExplanationError(
            "no language model has read the items' texts",
            where=f"method 'item_similarity', backbone {task.model.backbone.source!r}",
            expected="items with text vectors",
            fix="train with model.recurrent.words, or use another reference",
        )
    texts = task.model.units.words[task.model.first_item :]  # (I, D), length one
    vocabulary = task.model.encoder.vocabulary
    targets = task.target.codes.reshape(len(task.histories), -1)[:, 0].tolist()
    shares = []
    for history, target in zip(task.histories, targets, strict=True):
        rows = torch.from_numpy(vocabulary.item_codes(history).astype(np.int64)).to(texts.device)
        cosines = (texts[rows] @ texts[target]).double().cpu().numpy()
        shares.append(_parts(cosines.clip(min=0)))
    return _shares(task, shares)


def _parts(sizes: np.ndarray) -> np.ndarray:
    """(E,) sizes as shares of their sum; even where all are zero."""
    total = sizes.sum()
    return sizes / total if total > 0 else np.full(len(sizes), 1 / len(sizes))


def _shares(task: Task, scores: list[np.ndarray]) -> Attribution:
    base, full = task.values.ends()
    return Attribution(scores, np.zeros(len(scores)), base, full, task.values.evaluations.copy())
