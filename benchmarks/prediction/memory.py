"""The memory on a generated log with known causes, and its cost for large catalogues: memory.json.

    python -m benchmarks.prediction.memory [--part process] [--kinds mixture hawkes softmax]

Part ``process`` fine-tunes a model with default options on each generated log and measures, beside
the process itself: NDCG@10 of the last event, AUROC of the true causes with the default
explanation, and the errors of the gates. In a softmax no event is the cause, so its AUROC is left
out. Part ``scale`` fits a memory on random logs of 12,000, 100,000 and 1,000,000 items.

The figures are means over the seeds of the first of the kinds; ``gate_error_second_law`` is the
mean of the largest error of each seed.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Row, arguments, results_of, row_of, started, write_benchmark
from benchmarks.prediction.excitation_log import BEHAVIORS, KINDS, ExcitedLog, make_log
from benchmarks.training_runs import trained_once
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.target import Item
from llm_influence.config.model import MemoryConfig
from llm_influence.config.run import RunConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import Split, split_log
from llm_influence.evaluation.evaluate import predict_rows
from llm_influence.evaluation.item_baselines import MemoryAlone
from llm_influence.evaluation.metrics import evaluate, ndcg_of_rows
from llm_influence.modeling.memory_fit import fit_memory
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.vocabulary import Vocabulary

SIZES = (100_000, 1_000_000, 12_000)
EVENTS = 20
"""Events of a user of the random logs; there are as many users as items, at most 100,000."""
READ = 16
"""Histories that are read for the time at reading."""
PARTS = ("process", "scale")
PARSER = arguments(
    __doc__,
    "memory",
    seeds=(0, 1, 2),
    part=[*PARTS],
    kinds=["mixture", "hawkes", "softmax"],
    users=(3000, "users of a generated log"),
    explained=(200, "caused test events whose explanation is compared with the cause"),
    epochs=3.0,
)


def config_of(options: argparse.Namespace, kind: str, seed: int) -> RunConfig:
    """The run on one generated log: the demo's, and revisits are candidates."""
    return RunConfig.model_validate(
        {
            "output": str(options.work / f"{kind}_{seed}"),
            "rendering": {"template": "fused"},
            "model": {"layers": 3},
            "train": {"epochs": options.epochs, "batch_size": 32, "seed": seed},
            "evaluation": {"exclude_seen": False},
        }
    )


def process(options: argparse.Namespace, kind: str, seed: int) -> dict[str, float]:
    """Figures of the model and of the process itself on one log."""
    made = make_log(kind, seed, users=options.users)
    split = split_log(made.log)
    config = config_of(options, kind, seed)
    begun = time.perf_counter()
    model = trained_once(config, split)
    seconds = time.perf_counter() - begun
    columns = predict_rows(model, split.test, config.evaluation)
    values = ndcg_of_rows(columns["rank"])
    alone = evaluate(MemoryAlone(model, model.item_head.memory), split.test, config.evaluation)[1]
    figures = {
        "ndcg10": float(values.mean()),
        "ndcg10 memory alone": float(ndcg_of_rows(alone).mean()),
        "seconds": seconds,
        **own_figures(made),
    }
    drawn = made.drawn[split.test.users, made.items.shape[1] - 1]
    if (drawn >= 0).any():
        for number, name in enumerate(KINDS):
            figures[f"ndcg10 {name}"] = float(values[drawn == number].mean())
        figures["causes"] = causes(model, made, split, options.explained)
    return figures | gate_errors(model)


def own_figures(made: ExcitedLog) -> dict[str, float]:
    """NDCG@10 and AUROC of the process itself."""
    last = made.items.shape[1] - 1
    ages = made.times[:, last, None] - made.times[:, :last]
    past = (made.items[:, :last], made.behaviors[:, :last], ages)
    targets = made.items[:, last]
    scores = made.law.probabilities(*past)
    own = scores[np.arange(len(targets)), targets][:, None]
    ranks = (scores > own).sum(axis=1) + 1
    process = {"process ndcg10": float(ndcg_of_rows(ranks).mean())}
    caused = made.parents[:, last] >= 0
    if not caused.any():
        return process
    parts = made.law.parts(*past, targets)[caused]
    return process | {
        "process causes": auroc(list(parts), made.parents[caused, last]),
        "recency causes": auroc([-a for a in ages[caused]], made.parents[caused, last]),
    }


def auroc(scores: list[np.ndarray], parents: np.ndarray) -> float:
    """Mean over examples of the share of other events that score below the true cause."""
    shares = []
    for own, parent in zip(scores, parents, strict=True):
        others = np.delete(own, parent)
        shares.append((own[parent] > others).mean() + (own[parent] == others).mean() / 2)
    return float(np.mean(shares))


def causes(model: InfluenceModel, made: ExcitedLog, split: Split, most: int) -> float:
    """AUROC of the true causes of caused test events, with the default explanation."""
    last = made.items.shape[1] - 1
    parents = made.parents[split.test.users, last]
    chosen = np.flatnonzero(parents >= 0)[:most]
    histories = [split.test.history(int(n)) for n in chosen]
    items = [split.log.catalogue.ids[int(split.test.target_items[n])].as_py() for n in chosen]
    explainer = Explainer(model)
    found = [
        explainer.explain(history, Item(item)).values
        for history, item in zip(histories, items, strict=True)
    ]
    return auroc(found, parents[chosen])


def gate_errors(model: InfluenceModel) -> dict[str, float]:
    """Relative errors, at most 10, of weights and half-lives; without effect, the weight itself."""
    memory = model.item_head.memory
    gates = {} if memory is None else {gate.behavior: gate for gate in memory.gates()}
    top = max(weight for _, weight, _ in BEHAVIORS.values())
    errors = {}
    for name, (_, weight, half_life) in BEHAVIORS.items():
        if name in gates and weight:
            errors[f"{name} weight error"] = abs(gates[name].weight * top / weight - 1)
            errors[f"{name} half-life error"] = min(abs(gates[name].half_life / half_life - 1), 10)
        elif name in gates:
            errors[f"{name} weight"] = gates[name].weight
    return errors | {"largest gate error": max(errors.values())}


def value_of(rows: list[Row], task: str, metric: str) -> float | None:
    """The value of a row; None if it was not measured."""
    return next(
        (row["value"] for row in rows if (row["task"], row["metric"]) == (task, metric)), None
    )


def mean(rows: list[Row], options: argparse.Namespace, metric: str) -> float | None:
    """Mean over the seeds of the first kind."""
    values = [value_of(rows, f"{options.kinds[0]} {seed}", metric) for seed in options.seeds]
    return None if None in values else float(np.mean(values))


def scale(items: int) -> dict[str, float]:
    """Seconds and memory of the fit on a log of Zipf-like popularity, half of it transitions."""
    random, users = np.random.default_rng(0), min(items, 100_000)
    codes = np.minimum(random.zipf(1.3, (users, EVENTS)) - 1, 10 * items) % items
    for step in range(1, EVENTS):  # half of the events are caused: each item draws four others
        drawn = (codes[:, step - 1] * 7 + 1 + random.integers(0, 4, users)) % items
        codes[:, step] = np.where(random.random(users) < 0.5, drawn, codes[:, step])
    log = BehaviorLog.from_arrays(
        user_ids=[f"u{n:07d}" for n in range(users)],
        offsets=np.arange(users + 1) * EVENTS,
        items=codes.ravel(),
        timestamps=np.sort(random.integers(0, 10**7, (users, EVENTS)), axis=1).ravel(),
        catalogue=Catalogue.from_ids([f"i{n:07d}" for n in range(items)]),
    )
    vocabulary = Vocabulary.fit(log)
    begun, begun_cpu = time.perf_counter(), time.process_time()
    config = MemoryConfig(ages="last_event", associations=items <= 12_000)
    memory = fit_memory(log, vocabulary, config, reach=EVENTS)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    size = sum(tensor.nbytes for tensor in memory.state_dict().values())
    records = memory.sample[: READ * EVENTS].view(READ, EVENTS, -1)
    begun = time.perf_counter()
    memory.alone(records, torch.ones(records.shape[:2]))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "transitions": len(memory.transitions.codes),
        "mib of the memory": size / 2**20,
        "milliseconds a history": 1000 * (time.perf_counter() - begun) / READ,
    }


def main(options: argparse.Namespace) -> None:
    """Measure the chosen parts and write the file."""
    results = results_of(options, users=options.users, epochs=options.epochs)
    rows: list[Row] = []
    if "scale" in options.part:
        for items in SIZES:  # dense associations of the smallest need most memory
            figures = results.keep(f"scale {items}", lambda items=items: scale(items))
            rows += [row_of("memory", f"{items} items", name, v) for name, v in figures.items()]
    if "process" in options.part:
        for kind in options.kinds:
            for seed in options.seeds:
                figures = results.keep(
                    f"{kind} {seed}", lambda kind=kind, seed=seed: process(options, kind, seed)
                )
                rows += [row_of("model", f"{kind} {seed}", n, v) for n, v in figures.items()]
    figures = {
        "ndcg10_second_law": mean(rows, options, "ndcg10"),
        "ndcg10_memory_alone": mean(rows, options, "ndcg10 memory alone"),
        "auroc_second_law": mean(rows, options, "causes"),
        "gate_error_second_law": mean(rows, options, "largest gate error"),
        "seconds_12k": value_of(rows, "12000 items", "seconds"),
        "seconds_1m": value_of(rows, "1000000 items", "seconds"),
        "peak_gib_1m": value_of(rows, "1000000 items", "peak_gib"),
    }
    write_benchmark(
        Path(options.output),
        name="memory",
        protocol={
            "log": f"{options.users} users, 40 events, 300 items; benchmarks.prediction",
            "test": "last event of every user; all items are candidates, seen ones too",
            "causes": f"first {options.explained} caused test events, default explanation",
        },
        rows=rows,
        figures={name: value for name, value in figures.items() if value is not None},
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main(started(PARSER))
