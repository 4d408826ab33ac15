"""A knowledge graph for items without any event: docs/benchmarks/knowledge_graph.json.

    python -m benchmarks.prediction.knowledge_graph [--folds 3]

The task is that of `cold_items`: every fold keeps other films back (5% for validation, 10% for the
test). Films enter without knowledge, with the graph in their text, in all vectors (trained with),
in the vectors of new films only (not trained with), and in text and vectors. The neighbours' shares
are chosen on validation films of all folds together; test films are used once, for the chosen
models. Beside them are kNNs by text, by text with the graph, and by the graph, chosen likewise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.harness import Results, Row, arguments, results_of, row_of, started, write_benchmark
from benchmarks.prediction.cold_items import knn_quality, knn_ranks, mean_ndcg
from benchmarks.training_runs import open_log, ranks_of, trained_once
from llm_influence.config.data import DataConfig, NeighborsConfig
from llm_influence.config.run import RunConfig
from llm_influence.data.holdouts import NewItemSplit, split_new_items
from llm_influence.data.knowledge_graph import ItemFacts, enriched
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.public import open_knowledge
from llm_influence.evaluation.metrics import ndcg_of_rows, ranking_metrics
from llm_influence.modeling.backbone import load_backbone
from llm_influence.modeling.embeddings import text_vectors
from llm_influence.modeling.model import InfluenceModel
from llm_influence.numerics import bootstrap_interval

GRAPH = "movielens_100k"
PARSER = arguments(
    __doc__,
    "knowledge_graph",
    folds=3,
    epochs=3.0,
    dropout=(0.5, "of residuals"),
    shares=[0.3, 0.6],
    new_shares=[0.5, 0.8],
    count=(10, "neighbours of an item"),
    layers=3,
    seed=(0, "of training"),
    users=(int, "the first so many only, for a trial"),
)


@dataclass(frozen=True)
class Setting:
    """How the graph enters a model: in texts, in vectors, in the vectors of new items only."""

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

    def config(self, options: argparse.Namespace, fold: int) -> RunConfig:
        """The run of one fold; neighbours of new items are not trained."""
        name = replace(self, new_share=0.0).name.replace(" ", "_")
        item_head = {"neighbors": {"share": self.share, "count": options.count}}
        model = {"layers": options.layers, "residual_dropout": options.dropout}
        data = {"knowledge": {"source": GRAPH}} if self.share else {}
        return RunConfig.model_validate(
            {
                "output": str(options.work / f"fold{fold}_{name}"),
                "model": {**model, "item_head": item_head},
                "train": {"epochs": options.epochs, "seed": options.seed},
                "data": data,
            }
        )


@dataclass
class Bench:
    """The folds, with and without the graph in the texts, and what was measured.

    Attributes:
        options: Of the command line.
        tasks: Folds by whether texts hold the graph.
        facts: The graph.
        results: Ranks and qualities on disk.
        tried: NDCG@10 on validation films, new and old, by setting.
    """

    options: argparse.Namespace
    tasks: dict[bool, list[NewItemSplit]]
    facts: ItemFacts
    results: Results
    tried: dict[Setting, dict[str, float]]

    def model(self, setting: Setting, fold: int) -> InfluenceModel:
        """The model of a fold, trained unless it is there, ready for new items."""
        config, task = setting.config(self.options, fold), self.tasks[setting.text][fold]
        model = trained_once(config, task.old, with_backbone=False)
        if setting.new_share:
            neighbors = NeighborsConfig(new_share=setting.new_share, count=self.options.count)
            head = model.config.item_head.model_copy(update={"neighbors": neighbors})
            model.config = model.config.model_copy(update={"item_head": head})
            model.facts = self.facts
        return model

    def validate(self, setting: Setting) -> float:
        """NDCG@10 on the new validation films of all folds; noted in ``tried``."""

        def fold_quality(fold: int) -> dict[str, float]:
            task, config = self.tasks[setting.text][fold], setting.config(self.options, fold)
            model = self.model(setting, fold)
            old = mean_ndcg(ranks_of(model, task.old.validation, config))
            model.add_items(task.new_items)
            ranks = ranks_of(model, task.validation, config)
            return {"old": old, "new": mean_ndcg(ranks), "examples": len(ranks)}

        folds = [
            self.results.keep(f"{setting.name}, fold {n}", lambda n=n: fold_quality(n))
            for n in range(self.options.folds)
        ]
        new = np.average([f["new"] for f in folds], weights=[f["examples"] for f in folds])
        self.tried[setting] = {"new": float(new), "old": float(np.mean([f["old"] for f in folds]))}
        return float(new)

    def test(self, setting: Setting) -> np.ndarray:
        """(N,) ranks of the test films of all folds."""

        def fold_ranks(fold: int) -> list[int]:
            model, task = self.model(setting, fold), self.tasks[setting.text][fold]
            model.add_items(task.new_items)
            return ranks_of(model, task.test, setting.config(self.options, fold)).tolist()

        return np.concatenate(
            [
                self.results.keep(f"{setting.name}, test of fold {n}", lambda n=n: fold_ranks(n))
                for n in range(self.options.folds)
            ]
        )


def fold_task(log: BehaviorLog, facts: ItemFacts | None, fold: int) -> NewItemSplit:
    """A fold's task; with ``facts`` the text of a film names the old films that it is like."""
    task = split_new_items(log, seed=fold)
    if facts is None:
        return task
    catalogue = enriched(log.catalogue, facts, "neighbors", among=task.old.log.catalogue)
    return split_new_items(replace(log, catalogue=catalogue), seed=fold)  # draws the same films


def graph_vectors(facts: ItemFacts, task: NewItemSplit) -> torch.Tensor:
    """(I, I) vectors of all films whose products are their cosines by entities."""
    rows = facts.directions(task.log.catalogue.ids, among=task.old.log.catalogue.ids)
    values, vectors = np.linalg.eigh((rows @ rows.T).toarray())
    return torch.from_numpy(vectors * np.sqrt(values.clip(min=0))).float()


def best_knn(
    vectors: list[torch.Tensor], tasks: list[NewItemSplit]
) -> tuple[float, np.ndarray, str]:
    """A kNN chosen on validation films: its value there, its ranks on test films, its shape."""
    shapes = knn_quality(vectors, tasks)
    last, pool = max(shapes, key=shapes.__getitem__)
    ranks = knn_ranks(vectors, [task.test for task in tasks], last, pool)
    return shapes[last, pool], ranks, f"last {last}, {pool}"


def chosen_settings(bench: Bench) -> dict[str, Setting]:
    """Train all settings; those chosen on validation films, by the key of figures."""
    options = bench.options

    def best(settings: Sequence[Setting]) -> Setting:
        return max(settings, key=bench.validate)

    plain, text = Setting(text=False), Setting(text=True)
    mixed = [replace(plain, share=share) for share in options.shares]
    lent = [replace(plain, new_share=share) for share in options.new_shares]
    settings = {"none": best([plain]), "text": best([text])}
    settings["new_neighbours"] = best(lent)
    settings["text_and_new_neighbours"] = best([replace(each, text=True) for each in lent])
    settings["neighbours"] = best(mixed)
    settings["both"] = best([replace(settings["neighbours"], text=True)])
    return settings


def rows_of(
    bench: Bench,
    ranks: dict[str, np.ndarray],
    knns: dict[str, tuple[float, np.ndarray, str]],
    users: np.ndarray,
) -> list[Row]:
    """Every system on test films, every setting on validation films."""
    plain, rows = ndcg_of_rows(ranks["no knowledge"]), []
    for name, own in ranks.items():
        ends = bootstrap_interval(ndcg_of_rows(own) - plain, users)
        rows += [
            row_of(name, "new items, test", metric, value, *(ends if metric == "ndcg@10" else ()))
            for metric, value in ranking_metrics(own).items()
        ]
    rows += [
        row_of(setting.name, f"{kind} items, validation", "ndcg@10", values[kind])
        for setting, values in bench.tried.items()
        for kind in ("new", "old")
    ]
    return rows + [
        row_of(f"{name} ({shape})", "new items, validation", "ndcg@10", value)
        for name, (value, _, shape) in knns.items()
    ]


def main(options: argparse.Namespace) -> None:
    """Train all settings, choose on validation, test once, write."""
    log = open_log(RunConfig(), options.users)
    facts = open_knowledge(DataConfig.model_validate({"knowledge": {"source": GRAPH}}))
    tasks = {
        text: [fold_task(log, facts if text else None, fold) for fold in range(options.folds)]
        for text in (False, True)
    }
    names = ("epochs", "dropout", "count", "layers", "seed", "users")
    results = results_of(options, **{name: getattr(options, name) for name in names})
    bench = Bench(options, tasks, facts, results, {})
    chosen = chosen_settings(bench)
    ranks = {setting.name: bench.test(setting) for setting in chosen.values()}
    backbone = load_backbone("minilm", layers=options.layers)
    texts = {
        text: [text_vectors(backbone, list(task.log.catalogue.texts)) for task in tasks[text]]
        for text in tasks
    }
    knns = {
        "text kNN": best_knn(texts[False], tasks[False]),
        "text kNN, text with the graph": best_knn(texts[True], tasks[True]),
        "graph kNN": best_knn([graph_vectors(facts, task) for task in tasks[False]], tasks[False]),
    }
    ranks |= {name: own for name, (_, own, _) in knns.items()}
    users = np.concatenate([task.test.users for task in tasks[False]])
    keys = {key: setting.name for key, setting in chosen.items()}
    keys |= {"text_knn": "text kNN", "graph_knn": "graph kNN"}
    write_benchmark(
        options.output,
        name="knowledge_graph",
        protocol={
            "data": "movielens_100k",
            "graph": "RecBole's Freebase graph, its links corrected "
            "(docs/how-to/knowledge_and_rules.md)",
            "items_the_graph_knows": int(
                (facts.incidence(log.catalogue.ids).sum(axis=1) > 0).sum()
            ),
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
        rows=rows_of(bench, ranks, knns, users),
        figures={
            **{f"{key}_ndcg10": mean_ndcg(ranks[name]) for key, name in keys.items()},
            "share": chosen["neighbours"].share,
            "new_share": chosen["new_neighbours"].new_share,
            "test_questions": len(users),
        },
        seeds=list(range(options.folds)),
    )


if __name__ == "__main__":
    main(started(PARSER))
