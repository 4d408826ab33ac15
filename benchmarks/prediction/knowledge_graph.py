"""Does a knowledge graph help with items that nobody has touched?

    python -m benchmarks.prediction.knowledge_graph [--output runs/knowledge_graph] [--folds 3]

The task is that of benchmark_cold_items.py: every fold keeps other films back (5% for validation,
10% for the test). Films enter without knowledge, with the graph in their text, in all vectors
(trained with), in the vectors of new films alone (not trained with), and in text and vectors.
The neighbours' shares are chosen on validation films, of all folds together; test films are asked
once, of the chosen models. Beside them stand kNNs that train
nothing, by text, by text with the graph, and by the graph alone, chosen in the same way.
One JSON file a run: broken off, it goes on. Writes docs/benchmarks/knowledge_graph.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import write_benchmark
from benchmarks.prediction.cold_items import knn_ranks, mean_ndcg, model_ranks, read_log
from benchmarks.training_runs import train
from llm_influence.config.data import DataConfig, NeighborsConfig
from llm_influence.config.run import RunConfig
from llm_influence.data.holdouts import ColdSplit, cold_split
from llm_influence.data.knowledge_graph import ItemFacts, enriched
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.sources import open_knowledge
from llm_influence.evaluation.baselines import LAST, POOLS
from llm_influence.evaluation.bootstrap import bootstrap_interval
from llm_influence.evaluation.metrics import ndcg_of_rows, ranking_metrics
from llm_influence.modeling.backbone import load_backbone
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.text_vectors import text_vectors
from llm_influence.utils import write_text

GRAPH = "movielens_100k"


@dataclass(frozen=True)
class Setting:
    """How the graph enters a model: in texts, in vectors, in the vectors of new items alone."""

    text: bool
    share: float = 0.0
    new_share: float = 0.0

    @property
    def name(self) -> str:
        """As the tables call it."""
        parts = ["text"] * self.text
        parts += [f"neighbours {self.share:g}"] * bool(self.share)
        parts += [f"neighbours of new items {self.new_share:g}"] * bool(self.new_share)
        return " and ".join(parts) or "no knowledge"

    def folder(self, options: argparse.Namespace, fold: int) -> Path:
        """Where its run of a fold lies."""
        return options.output / f"fold{fold}_{self.name.replace(' ', '_')}"

    def trained(self) -> Setting:
        """The setting whose weights it has: what new items are given is not trained."""
        return replace(self, new_share=0.0)

    def config(self, options: argparse.Namespace, fold: int) -> RunConfig:
        """The run of one fold."""
        item_head = {"neighbors": {"share": self.share, "count": options.count}}
        model = {"layers": options.layers, "residual_dropout": options.dropout}
        tree = {
            "output": str(self.folder(options, fold)),
            "model": {**model, "item_head": item_head},
            "train": {"epochs": options.epochs, "seed": options.seed},
        }
        if self.share:
            tree["data"] = {"knowledge": {"source": GRAPH}}
        return RunConfig.model_validate(tree)

    def open(self, facts: ItemFacts, options: argparse.Namespace, fold: int) -> InfluenceModel:
        """Its saved model of a fold, ready to be given new items."""
        model = InfluenceModel.from_pretrained(self.trained().folder(options, fold) / "model")
        if self.new_share:
            neighbors = NeighborsConfig(new_share=self.new_share, count=options.count)
            head = model.config.item_head.model_copy(update={"neighbors": neighbors})
            model.config = model.config.model_copy(update={"item_head": head})
            model.facts = facts
        return model


def fold_task(log: BehaviorLog, facts: ItemFacts | None, fold: int) -> ColdSplit:
    """A fold's task; with ``facts`` its films' texts name the old films that they are like."""
    task = cold_split(log, seed=fold)
    if facts is None:
        return task
    old = task.warm.log.catalogue
    told = enriched(log.catalogue, facts, "neighbors", among=old)
    return cold_split(replace(log, catalogue=told), seed=fold)  # draws the same films


def validated(
    setting: Setting, task: ColdSplit, facts: ItemFacts, options: argparse.Namespace, fold: int
) -> dict:
    """NDCG@10 of one run on validation films, new and old; trained unless that is done."""
    path = setting.folder(options, fold) / "validation.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    saved = setting.trained().folder(options, fold) / "model"
    if not (saved / "model.json").exists():  # which is written last
        model = train(setting.config(options, fold), task.warm).influence_model
        model.save_pretrained(saved, with_backbone=False)
    model = setting.open(facts, options, fold)
    found = {"old": mean_ndcg(model_ranks(model, task.warm.validation))}
    model.add_items(task.cold)
    ranks = model_ranks(model, task.validation)
    found |= {"new": mean_ndcg(ranks), "examples": len(ranks)}
    write_text(path, json.dumps(found) + "\n")
    print(f"fold {fold}, {setting.name}: {found}", flush=True)
    return found


def tested(
    setting: Setting, task: ColdSplit, facts: ItemFacts, options: argparse.Namespace, fold: int
) -> np.ndarray:
    """(N,) ranks of a saved model on its fold's test films."""
    path = setting.folder(options, fold) / "test.json"
    if not path.exists():
        model = setting.open(facts, options, fold)
        model.add_items(task.cold)
        write_text(path, json.dumps(model_ranks(model, task.test).tolist()) + "\n")
    return np.array(json.loads(path.read_text(encoding="utf-8")))


def graph_vectors(facts: ItemFacts, task: ColdSplit) -> torch.Tensor:
    """(I, I) vectors of all films whose products are their cosines by entities."""
    ids, old = task.log.catalogue.ids, task.warm.log.catalogue.ids
    rows = facts.directions(ids, among=old)
    values, vectors = np.linalg.eigh((rows @ rows.T).toarray())
    return torch.from_numpy(vectors * np.sqrt(values.clip(min=0))).float()


def best_knn(vectors: list[torch.Tensor], tasks: list[ColdSplit]) -> tuple[float, np.ndarray, str]:
    """A kNN chosen on validation films: its value there, its ranks on test films, its shape."""
    asked = [task.validation for task in tasks]
    shapes = {
        (last, pool): mean_ndcg(knn_ranks(vectors, asked, last, pool))
        for pool in POOLS
        for last in LAST
    }
    last, pool = max(shapes, key=shapes.__getitem__)
    ranks = knn_ranks(vectors, [task.test for task in tasks], last, pool)
    return shapes[last, pool], ranks, f"last {last}, {pool}"


def main(options: argparse.Namespace) -> None:
    """Train all settings, choose on validation, test once, write."""
    torch.set_num_threads(options.threads)
    log = read_log(options.users)
    facts = open_knowledge(DataConfig.model_validate({"knowledge": {"source": GRAPH}}))
    folds = range(options.folds)
    tasks = {
        told: [fold_task(log, facts if told else None, fold) for fold in folds]
        for told in (False, True)
    }

    tried: dict[Setting, dict[str, float]] = {}

    def validate(setting: Setting) -> float:
        found = [
            validated(setting, tasks[setting.text][fold], facts, options, fold) for fold in folds
        ]
        examples = np.array([each["examples"] for each in found])
        new = float((np.array([each["new"] for each in found]) * examples).sum() / examples.sum())
        tried[setting] = {"new": new, "old": float(np.mean([each["old"] for each in found]))}
        return new

    plain, told = Setting(text=False), Setting(text=True)
    validate(plain)
    given = [replace(plain, new_share=share) for share in options.new_shares]
    lent = max(given, key=validate)
    validate(told)
    lent_too = max([replace(each, text=True) for each in given], key=validate)
    mixed = max([replace(plain, share=share) for share in options.shares], key=validate)
    both = replace(mixed, text=True)
    validate(both)
    for setting, found in tried.items():
        print(f"{setting.name}: validation new {found['new']:.4f}, old {found['old']:.4f}")
    chosen = {
        "none": plain,
        "text": told,
        "new_neighbours": lent,
        "text_and_new_neighbours": lent_too,
        "neighbours": mixed,
        "both": both,
    }
    ranks = {
        setting.name: np.concatenate(
            [tested(setting, tasks[setting.text][fold], facts, options, fold) for fold in folds]
        )
        for setting in chosen.values()
    }

    backbone = load_backbone("minilm", layers=options.layers)
    texts = {
        told: [text_vectors(backbone, list(task.log.catalogue.texts)) for task in tasks[told]]
        for told in tasks
    }
    knns = {
        "text kNN": best_knn(texts[False], tasks[False]),
        "text kNN, text with the graph": best_knn(texts[True], tasks[True]),
        "graph kNN": best_knn([graph_vectors(facts, task) for task in tasks[False]], tasks[False]),
    }
    for name, (value, _, shape) in knns.items():
        print(f"{name} ({shape}): validation new {value:.4f}")
    ranks |= {name: found for name, (_, found, _) in knns.items()}
    write(options, log, tasks[False], facts, tried, knns, ranks, chosen)


def write(
    options: argparse.Namespace,
    log: BehaviorLog,
    tasks: list[ColdSplit],
    facts: ItemFacts,
    tried: dict[Setting, dict[str, float]],
    knns: dict[str, tuple[float, np.ndarray, str]],
    ranks: dict[str, np.ndarray],
    chosen: dict[str, Setting],
) -> None:
    """The JSON file: every system on test films, every setting on validation films."""
    users = np.concatenate([task.test.users for task in tasks])
    plain = ndcg_of_rows(ranks["no knowledge"])
    known = facts.incidence(log.catalogue.ids).sum(axis=1) > 0
    rows = []
    for name, found in ranks.items():
        low, high = bootstrap_interval(ndcg_of_rows(found) - plain, users)
        metrics = ranking_metrics(found)
        rows += [
            {
                "system": name,
                "task": "new items, test",
                "metric": metric,
                "value": value,
                **({"low": low, "high": high} if metric == "ndcg@10" else {}),
            }
            for metric, value in metrics.items()
        ]
    rows += [
        {
            "system": setting.name,
            "task": f"{kind} items, validation",
            "metric": "ndcg@10",
            "value": found[kind],
        }
        for setting, found in tried.items()
        for kind in ("new", "old")
    ]
    rows += [
        {
            "system": f"{name} ({shape})",
            "task": "new items, validation",
            "metric": "ndcg@10",
            "value": value,
        }
        for name, (value, _, shape) in knns.items()
    ]
    names = {key: setting.name for key, setting in chosen.items()}
    names |= {"text_knn": "text kNN", "graph_knn": "graph kNN"}
    write_benchmark(
        options.write,
        name="knowledge_graph",
        protocol={
            "data": "movielens_100k",
            "graph": "RecBole's Freebase graph, its links put right (docs/how-to/knowledge_and_rules.md)",
            "items_the_graph_knows": int(known.sum()),
            "users": len(log),
            "folds": options.folds,
            "items_kept_back": "5% validate, 10% are tested, drawn anew in every fold",
            "test_questions": len(users),
            "candidates": "all items, old and new, but those of the history",
            "text": "title, year, genres and, with the graph, three old films that share the "
            "rarest entities",
            "neighbours": f"{options.count} old films, weighted by cosines of entities",
            "shares": f"of {options.shares} (trained with) and {options.new_shares} (of new items "
            "alone, the model trained without) the best on validation items",
            "knn": "shapes chosen on validation items: "
            + "; ".join(f"{name}: {shape}" for name, (_, _, shape) in knns.items()),
            "interval": "low and high: 95% of the difference from no knowledge, paired bootstrap, "
            "users drawn with all their examples",
            "residual_dropout": options.dropout,
            "epochs": options.epochs,
            "layers": options.layers,
        },
        rows=rows,
        figures={
            **{f"{key}_ndcg10": mean_ndcg(ranks[name]) for key, name in names.items()},
            "share": chosen["neighbours"].share,
            "new_share": chosen["new_neighbours"].new_share,
            "test_questions": len(users),
        },
        seeds=list(range(options.folds)),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/knowledge_graph"))
    parser.add_argument("--write", type=Path, default=Path("docs/benchmarks/knowledge_graph.json"))
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--dropout", type=float, default=0.5, help="of residuals")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.6])
    parser.add_argument("--new_shares", type=float, nargs="+", default=[0.5, 0.8])
    parser.add_argument("--count", type=int, default=10, help="neighbours of an item")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--users", type=int, default=None, help="for a trial")
    main(parser.parse_args())
