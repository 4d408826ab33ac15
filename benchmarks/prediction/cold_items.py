"""Recommending items without any event by their text alone: docs/benchmarks/cold_items.json.

    python -m benchmarks.prediction.cold_items [--folds 3] [--epochs 3] [--layers 3]
        [--conditionings centered whitened]

Every fold keeps other items back (5% for validation, 10% for the test). The residual dropout, the
conditioning of the text vectors and the text kNN's shape are chosen on the validation items of all
folds; test is used once. A trained model of a fold in ``--work`` is not trained again.
"""

from __future__ import annotations

import argparse
from itertools import product

import numpy as np
import torch

from benchmarks.harness import arguments, row_of, started, write_benchmark
from benchmarks.training_runs import open_log, ranks_of, trained_once
from llm_influence.config.run import RunConfig
from llm_influence.config.training import EvaluationConfig
from llm_influence.data.holdouts import NewItemSplit, split_new_items
from llm_influence.data.splits import EvaluationSet
from llm_influence.evaluation.baselines import LAST, POOLS, TextKNN
from llm_influence.evaluation.metrics import evaluate, ndcg_of_rows, ranking_metrics
from llm_influence.modeling.backbone import load_backbone
from llm_influence.modeling.embeddings import text_vectors
from llm_influence.numerics import bootstrap_interval

PARSER = arguments(
    __doc__,
    "cold_items",
    threads=None,
    folds=3,
    epochs=3.0,
    dropouts=[0.0, 0.5],
    conditionings=["centered"],
    layers=(int, "of the backbone; default: all"),
    users=(int, "the first so many only, for a trial"),
)


def config_of(
    options: argparse.Namespace, fold: int, dropout: float, conditioning: str
) -> RunConfig:
    """Training of one fold with one residual dropout and one conditioning of text vectors."""
    name = f"fold{fold}_dropout{dropout}_{conditioning}"
    return RunConfig.model_validate(
        {
            "output": str(options.work / name),
            "model": {
                "layers": options.layers,
                "residual_dropout": dropout,
                "item_head": {"text": {"conditioning": conditioning}},
            },
            "train": {"epochs": options.epochs},
        }
    )


def ranks_by_items(config: RunConfig, task: NewItemSplit) -> dict[str, np.ndarray]:
    """Ranks of the validation examples of old and new items by a fold's model."""
    model = trained_once(config, task.old, with_backbone=False)
    ranks = {"old": ranks_of(model, task.old.validation, config)}
    model.add_items(task.new_items)
    memory = model.item_head.memory
    for words in ("", ", no lift"):
        if words and memory is not None:
            memory.lifts.zero_()
        ranks[f"new{words}"] = ranks_of(model, task.validation, config)
        ranks[f"old among all{words}"] = ranks_of(model, task.old.validation, config)
    return ranks


def test_ranks(config: RunConfig, task: NewItemSplit) -> np.ndarray:
    """Ranks of a fold's test examples."""
    model = trained_once(config, task.old, with_backbone=False)
    model.add_items(task.new_items)
    return ranks_of(model, task.test, config)


def knn_ranks(
    vectors: list[torch.Tensor], rows: list[EvaluationSet], last: int, pool: str
) -> np.ndarray:
    """Ranks by a kNN over all folds, one after the other."""
    pairs = zip(vectors, rows, strict=True)
    config = EvaluationConfig()
    return np.concatenate([evaluate(TextKNN(v, last, pool), r, config)[1] for v, r in pairs])


def knn_quality(
    vectors: list[torch.Tensor], tasks: list[NewItemSplit]
) -> dict[tuple[int, str], float]:
    """NDCG@10 on validation items of every shape of a kNN: (last events, pool)."""
    rows = [task.validation for task in tasks]
    shapes = [(last, pool) for pool in POOLS for last in LAST]
    return {shape: mean_ndcg(knn_ranks(vectors, rows, *shape)) for shape in shapes}


def name_of(dropout: float, conditioning: str) -> str:
    """A setting in words."""
    return f"residual dropout {dropout}, {conditioning} texts"


def mean_ndcg(ranks: np.ndarray) -> float:
    """NDCG@10."""
    return float(ndcg_of_rows(ranks).mean())


def main(options: argparse.Namespace) -> None:
    """Train all folds, choose on validation, test once, write."""
    log, folds = open_log(RunConfig(), options.users), range(options.folds)
    tasks = [split_new_items(log, seed=fold) for fold in folds]
    backbone = load_backbone("minilm", layers=options.layers)
    texts = [text_vectors(backbone, list(task.log.catalogue.texts)) for task in tasks]

    quality: dict[tuple[float, str], dict[str, float]] = {}
    for setting in product(options.dropouts, options.conditionings):
        ranks = [ranks_by_items(config_of(options, n, *setting), tasks[n]) for n in folds]
        quality[setting] = {
            kind: mean_ndcg(np.concatenate([part[kind] for part in ranks])) for kind in ranks[0]
        }
        print(f"{name_of(*setting)}: validation {quality[setting]}")
    knn = knn_quality(texts, tasks)
    chosen = max(quality, key=lambda setting: quality[setting]["new"])
    last, pool = max(knn, key=knn.__getitem__)
    print(f"chosen: {name_of(*chosen)}; text kNN over the last {last}, {pool}")
    ours = np.concatenate([test_ranks(config_of(options, n, *chosen), tasks[n]) for n in folds])
    theirs = knn_ranks(texts, [task.test for task in tasks], last, pool)
    users = np.concatenate([task.test.users for task in tasks])
    low, high = bootstrap_interval(ndcg_of_rows(ours) - ndcg_of_rows(theirs), users)
    rows = [
        row_of(name, "new items, test", metric, value)
        for name, ranks in (("llm_influence", ours), (f"text kNN (last {last}, {pool})", theirs))
        for metric, value in ranking_metrics(ranks).items()
    ]
    rows += [
        row_of(f"llm_influence, {name_of(*setting)}", f"{kind} items, validation", "ndcg@10", value)
        for setting, values in quality.items()
        for kind, value in values.items()
    ]
    rows += [
        row_of(f"text kNN (last {n}, {way})", "new items, validation", "ndcg@10", value)
        for (n, way), value in knn.items()
    ]
    write_benchmark(
        options.output,
        name="cold_items",
        protocol={
            "data": "movielens_100k",
            "users": len(log),
            "folds": options.folds,
            "items_kept_back": "5% validate, 10% are tested, drawn anew in every fold",
            "training": "the first 80% of each history, without events of items kept back; they "
            "are not in the catalogue",
            "examples": "every event of a test item in the last 20% of a history, behind at "
            "least 5 events; the history is whole",
            "test_questions": len(ours),
            "candidates": "all items, old and new, but those of the history",
            "new_items": "added after training by their text (title, year, genres); each borrows "
            "the learned residuals and links of its nearest items by text, and has a lift in "
            "log-odds that is fitted on validation examples of old items",
            "epoch": "chosen on old items",
            "residual_dropout": f"{chosen[0]}, of {options.dropouts} the best on validation items",
            "conditioning": f"{chosen[1]}, of {options.conditionings}, chosen in the same way",
            "text_knn": f"last {last}, {pool}, the best on validation items; MiniLM text vectors",
            "interval": "95%, paired bootstrap, users drawn with all their examples",
            "epochs": options.epochs,
            "layers": options.layers or "all",
        },
        rows=rows,
        figures={
            "ndcg10": mean_ndcg(ours),
            "text_knn_ndcg10": mean_ndcg(theirs),
            "difference_low": low,
            "difference_high": high,
            "residual_dropout": chosen[0],
            "conditioning": chosen[1],
        },
        seeds=list(folds),
    )


if __name__ == "__main__":
    main(started(PARSER))
