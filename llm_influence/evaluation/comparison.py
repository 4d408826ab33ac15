"""A model beside the recommenders it must beat, on the same rows and rules."""

from __future__ import annotations

import numpy as np

from llm_influence.config import EvaluationConfig
from llm_influence.data.splits import Split
from llm_influence.evaluation.baselines import Popularity, best_item_knn
from llm_influence.evaluation.heads import by_head, head_metrics, predict_rows
from llm_influence.evaluation.ranking import ModelRecommender, Recommender, evaluate
from llm_influence.evaluation.references import behavior_references, feedback_references
from llm_influence.modeling.model import InfluenceModel

Record = dict[str, str | float]


def compare(model: InfluenceModel, split: Split, config: EvaluationConfig) -> list[Record]:
    """One record a system with its metrics on the test split: the model, item-kNN, popularity.

    Popularity and item-kNN are fitted on the training events; item-kNN's number of neighbours is
    chosen on validation.
    """
    knn = best_item_knn(split.train, split.validation, config)
    counts = np.bincount(split.train.items, minlength=len(split.log.catalogue))
    systems: list[tuple[str, Recommender]] = [
        (ModelRecommender.name, ModelRecommender(model)),
        (f"{knn.name} ({knn.neighbours})", knn),
        (Popularity.name, Popularity(split.train)),
    ]
    return [
        {"system": name, "split": "test", **evaluate(system, split.test, config, counts)[0]}
        for name, system in systems
    ]


def compare_heads(
    model: InfluenceModel, split: Split, config: EvaluationConfig
) -> dict[str, list[Record]]:
    """Records like those of `compare` for each trained head: items, behaviors, feedback.

    The model stands beside what anybody can say without one (`evaluation.references`).
    """
    found = by_head(head_metrics(model, predict_rows(model, split.test, config), config.cutoff))
    others: dict[str, dict[str, dict[str, float]]] = {}
    if "behaviors" in found:
        others["behaviors"] = behavior_references(split)
    if "feedback" in found and model.config.feedback is not None:
        others["feedback"] = feedback_references(split, model.config.feedback)
    records = {"items": compare(model, split, config)} if "items" in found else {}
    for head, references in others.items():
        systems = {ModelRecommender.name: found[head], **references}
        names = set.intersection(*(set(metrics) for metrics in systems.values()))
        records[head] = [
            {"system": system, "split": "test"}
            | {name: value for name, value in metrics.items() if name in names}
            for system, metrics in systems.items()
        ]
    return records


def as_text(records: list[Record]) -> str:
    """The records as an aligned table for a terminal."""
    names = list(records[0])
    cells = [[_cell(record[name]) for name in names] for record in records]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = [names, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: str | float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
