"""Items that nobody has touched: how well are they recommended by their text alone?

    python -m benchmarks.prediction.cold_items [--output runs/cold_items] [--folds 3] [--epochs 3]

Every fold keeps other items back (5% for validation, 10% for the test). The residual dropout and
the text kNN's shape are chosen on the validation items of all folds, the test items are asked once.
Goes on where it was broken off: a fold's model that is saved is not trained again.
Writes docs/benchmarks/cold_items.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import write_benchmark
from benchmarks.training_runs import train
from llm_influence.config.data import DataConfig
from llm_influence.config.run import RunConfig
from llm_influence.config.training import EvaluationConfig
from llm_influence.data.holdouts import ColdSplit, cold_split
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet
from llm_influence.datasets.sources import open_data
from llm_influence.evaluation.baselines import LAST, POOLS, TextKNN
from llm_influence.evaluation.bootstrap import bootstrap_interval
from llm_influence.evaluation.metrics import (
    ModelRecommender,
    evaluate,
    ndcg_of_rows,
    ranking_metrics,
)
from llm_influence.modeling.backbone import load_backbone
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.text_vectors import text_vectors

EVALUATION = EvaluationConfig()


def run_config(options: argparse.Namespace, folder: Path, dropout: float) -> RunConfig:
    """Training of one fold with one residual dropout."""
    model = {"layers": options.layers, "residual_dropout": dropout}
    return RunConfig.model_validate(
        {"output": str(folder), "model": model, "train": {"epochs": options.epochs}}
    )


def validate_fold(config: RunConfig, task: ColdSplit) -> dict[str, np.ndarray]:
    """Train (unless that is done) and rank the validation examples, of new items and of old."""
    folder = Path(config.output) / "model"
    if not (folder / "model.json").exists():  # which is written last
        train(config, task.warm).influence_model.save_pretrained(folder, with_backbone=False)
    model = InfluenceModel.from_pretrained(folder)
    old = model_ranks(model, task.warm.validation)
    model.add_items(task.cold)
    return {"old": old, "new": model_ranks(model, task.validation)}


def model_ranks(model: InfluenceModel, rows: EvaluationSet) -> np.ndarray:
    """(N,) ranks of the true items among all items, old and new."""
    return evaluate(ModelRecommender(model), rows, EVALUATION)[1]


def test_ranks(folder: Path, task: ColdSplit) -> np.ndarray:
    """The saved model of a fold on its test examples."""
    model = InfluenceModel.from_pretrained(folder / "model")
    model.add_items(task.cold)
    return model_ranks(model, task.test)


def knn_ranks(
    texts: list[torch.Tensor], rows: list[EvaluationSet], last: int, pool: str
) -> np.ndarray:
    """A text kNN's ranks over all folds, one after the other."""
    pairs = zip(texts, rows, strict=True)
    return np.concatenate([evaluate(TextKNN(t, last, pool), r, EVALUATION)[1] for t, r in pairs])


def mean_ndcg(ranks: np.ndarray) -> float:
    """NDCG@10."""
    return float(ndcg_of_rows(ranks).mean())


def read_log(users: int | None) -> BehaviorLog:
    """MovieLens-100K, or its first users for a trial."""
    log = open_data(DataConfig())
    return log if users is None else log.select(log.user_ids[:users].to_pylist())


def main(options: argparse.Namespace) -> None:
    """Train all folds, choose on validation, test once, write."""
    torch.set_num_threads(options.threads)
    log = read_log(options.users)
    tasks = [cold_split(log, seed=fold) for fold in range(options.folds)]
    backbone = load_backbone("minilm", layers=options.layers)
    texts = [text_vectors(backbone, list(task.log.catalogue.texts)) for task in tasks]

    cold, warm = {}, {}
    for dropout in options.dropouts:
        folders = [options.output / f"fold{n}_dropout{dropout}" for n in range(options.folds)]
        found = [
            validate_fold(run_config(options, folder, dropout), task)
            for folder, task in zip(folders, tasks, strict=True)
        ]
        cold[dropout] = mean_ndcg(np.concatenate([ranks["new"] for ranks in found]))
        warm[dropout] = mean_ndcg(np.concatenate([ranks["old"] for ranks in found]))
        print(f"residual dropout {dropout}: validation new {cold[dropout]}, old {warm[dropout]}")
    asked = [task.validation for task in tasks]
    shapes = {(n, pool): knn_ranks(texts, asked, n, pool) for pool in POOLS for n in LAST}
    knn = {shape: mean_ndcg(ranks) for shape, ranks in shapes.items()}
    for (last, pool), value in knn.items():
        print(f"text kNN, last {last}, {pool}: validation {value}")

    chosen, (last, pool) = max(cold, key=cold.__getitem__), max(knn, key=knn.__getitem__)
    print(f"chosen: residual dropout {chosen}; text kNN over the last {last}, {pool}")
    folders = [options.output / f"fold{n}_dropout{chosen}" for n in range(options.folds)]
    pairs = zip(folders, tasks, strict=True)
    ours = np.concatenate([test_ranks(folder, task) for folder, task in pairs])
    theirs = knn_ranks(texts, [task.test for task in tasks], last, pool)
    users = np.concatenate([task.test.users for task in tasks])
    low, high = bootstrap_interval(ndcg_of_rows(ours) - ndcg_of_rows(theirs), users)
    systems = {"llm_influence": ours, f"text kNN (last {last}, {pool})": theirs}
    write_benchmark(
        options.write,
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
            "the learned residuals of its nearest items by text",
            "epoch": "chosen on old items",
            "residual_dropout": f"{chosen}, of {options.dropouts} the best on validation items",
            "text_knn": f"last {last}, {pool}, the best on validation items; MiniLM text vectors",
            "interval": "95%, paired bootstrap, users drawn with all their examples",
            "epochs": options.epochs,
            "layers": options.layers or "all",
        },
        rows=[
            *(
                {"system": name, "task": "new items, test", "metric": metric, "value": value}
                for name, ranks in systems.items()
                for metric, value in ranking_metrics(ranks).items()
            ),
            *(
                {
                    "system": f"llm_influence, residual dropout {dropout}",
                    "task": f"{kind} items, validation",
                    "metric": "ndcg@10",
                    "value": found[dropout],
                }
                for kind, found in (("new", cold), ("old", warm))
                for dropout in found
            ),
            *(
                {
                    "system": f"text kNN (last {n}, {way})",
                    "task": "new items, validation",
                    "metric": "ndcg@10",
                    "value": value,
                }
                for (n, way), value in knn.items()
            ),
        ],
        figures={
            "ndcg10": mean_ndcg(ours),
            "text_knn_ndcg10": mean_ndcg(theirs),
            "difference_low": low,
            "difference_high": high,
            "residual_dropout": chosen,
        },
        seeds=list(range(options.folds)),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/cold_items"))
    parser.add_argument("--write", type=Path, default=Path("docs/benchmarks/cold_items.json"))
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--users", type=int, default=None, help="for a trial")
    main(parser.parse_args())
