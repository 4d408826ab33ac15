"""Weighting by inverse propensity on confounded logs of a known process: debiasing.json.

    python -m benchmarks.training.debiasing [--seeds 0 1 2]

Items are shown unequally often, whatever a user wants, and taken by affinity times exposure
(`PlantedConfig.exposure_spread`). Small GRUs are trained on such a log without weights, with
popularity as propensity, and with the true exposures. Then they predict for other users: what would
come next if all items were shown alike (drawn from the process), and which events moved that.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from benchmarks.harness import Row, arguments, results_of, row_of, started, write_benchmark
from benchmarks.training_runs import fitted, small_gru
from llm_influence import Contrast, Explainer, InfluenceModel, Item
from llm_influence.attribution.target import Target
from llm_influence.config.data import PlantedConfig
from llm_influence.datasets.planted import PlantedTruth, make_planted
from llm_influence.evaluation.metrics import ndcg_of_rows, target_ranks
from llm_influence.faithfulness.games import recovery
from llm_influence.types import FloatArray

PROCESS = {
    "half_life": 12 * 3600.0,
    "clusters": 4,
    "items": 40,
    "max_events": 12,
    "temperature": 0.6,
}
SPREAD = 1.0
"""Of the logarithm of exposures: of 40 items the most shown one is shown some 60 times as often
as the least."""
SYSTEMS: dict[str, tuple[str, dict[str, object]]] = {
    "no weights": ("none", {}),
    "popularity, power 0.5": ("popularity_half", {"source": "popularity"}),
    "popularity, power 1": (
        "popularity",
        {"source": "popularity", "power": 1.0, "clip": 0.01},
    ),
    "true exposure": ("exposure", {"source": "exposure", "column": "exposure", "clip": 0.01}),
}
"""By name: the key of figures, and the options of `train.propensity`."""
FIGURES = {
    "ndcg@10, shown alike": "ndcg10",
    "ndcg@10, as the log": "ndcg10_confounded",
    "divergence_from_process": "divergence",
    "spearman of influence, item": "influence_spearman",
    "auroc of influence, item": "influence_auroc",
    "error of influence, item": "influence_error",
    "spearman of influence, contrast": "contrast_spearman",
    "auroc of influence, contrast": "contrast_auroc",
}
PARSER = arguments(
    __doc__,
    "debiasing",
    seeds=(0, 1, 2),
    users=2500,
    test_users=2000,
    explained=200,
    epochs=12.0,
    learning_rate=4e-3,
)


def ranking(model: InfluenceModel, truth: PlantedTruth, seed: int) -> dict[str, float]:
    """How well the model knows what users want, and what they take."""
    histories = [truth.history(user) for user in range(len(truth.log))]
    process = np.stack([truth.process.log_probabilities(history) for history in histories])
    random = np.random.default_rng([seed, 7])
    chosen = (process + random.gumbel(size=process.shape)).argmax(axis=1)
    taken = truth.log.items[truth.log.offsets[1:] - 1]
    logits = torch.cat([part.item_logits.float().cpu() for _, part in model.predict(histories)])
    ours = logits.double().log_softmax(-1).numpy()
    return {
        "ndcg@10, shown alike": _ndcg(logits, chosen),
        "ndcg@10, as the log": _ndcg(logits, taken),
        "log_likelihood, shown alike": float(ours[np.arange(len(chosen)), chosen].mean()),
        "divergence_from_process": float((np.exp(process) * (process - ours)).sum(axis=1).mean()),
        "ndcg@10 of the process, shown alike": _ndcg(torch.from_numpy(process), chosen),
    }


def _ndcg(logits: torch.Tensor, came: np.ndarray) -> float:
    none = torch.full((len(came), 1), -1)
    ranks = target_ranks(logits, torch.from_numpy(came.astype(np.int64)), none)
    return float(ndcg_of_rows(ranks.numpy()).mean())


def influence(model: InfluenceModel, truth: PlantedTruth, users: int) -> dict[str, float]:
    """Recovery of the true influence on an item's log-odds and on its contrast with another."""
    values = {}
    for target in ("item", "contrast"):
        aimed = replace(truth, target=target)
        scores = _scores(model, aimed, users)
        means = recovery(scores, aimed.influence[:users], aimed.is_cause[:users]).means()
        for metric in ("spearman", "auroc"):
            values[f"{metric} of influence, {target}"] = means[metric]
        apart = [np.abs(s - t) for s, t in zip(scores, aimed.influence, strict=False)]
        values[f"error of influence, {target}"] = float(np.concatenate(apart).mean())
    return values


def _scores(model: InfluenceModel, truth: PlantedTruth, users: int) -> list[FloatArray]:
    ids, together = truth.process.item_ids.to_pylist(), defaultdict[Target, list[int]](list)
    for user in range(users):
        chosen = ids[truth.targets[user]]
        other = None if truth.others is None else ids[truth.others[user]]
        together[Item(chosen) if other is None else Contrast(chosen, other)].append(user)
    explainer, scores = Explainer(model, "leave_one_out", fidelity_masks=0), {}
    for target, same in together.items():
        records = explainer.explain([truth.history(user) for user in same], target)
        scores |= {user: record.values for user, record in zip(same, records, strict=True)}
    return [scores[user] for user in range(users)]


def measured(options: argparse.Namespace) -> Iterator[Row]:
    """A row a seed, system and metric."""
    names = ("users", "test_users", "explained", "epochs", "learning_rate")
    results = results_of(options, **{name: getattr(options, name) for name in names})
    for seed in options.seeds:
        config = PlantedConfig(seed=seed, users=options.users, exposure_spread=SPREAD, **PROCESS)
        log, _ = make_planted(config)
        _, truth = make_planted(
            config.model_copy(update={"users": options.test_users, "user_seed": 1})
        )
        for system, (key, propensity) in SYSTEMS.items():

            def measure(
                seed: int = seed,
                key: str = key,
                block: dict = propensity,
                world: tuple = (log, truth),
            ) -> dict[str, float]:
                run = small_gru(
                    options.work,
                    seed,
                    epochs=options.epochs,
                    rate=options.learning_rate,
                    train={"propensity": block},
                    rendering={"max_events": PROCESS["max_events"]},
                )
                model = fitted(run, world[0], options.work / f"seed_{seed}" / key)
                return ranking(model, world[1], seed) | influence(
                    model, world[1], options.explained
                )

            for metric, value in results.keep(f"seed {seed}, {system}", measure).items():
                yield row_of(system, f"seed {seed}", metric, value)


def main(options: argparse.Namespace) -> None:
    """Generate, train, measure, write."""
    rows = list(measured(options))
    values = defaultdict(list)
    for row in rows:
        values[row["system"], row["metric"]].append(row["value"])
    write_benchmark(
        options.output,
        name="debiasing",
        protocol={
            "data": "generated by a known process (docs/how-to/synthetic_truth.md); what comes "
            "next in the training log is drawn by the process's probability times exposure",
            "exposures": f"log-normal with spread {SPREAD}, independent of affinity",
            "asked": "other users of the same process, with histories from the same confounded "
            "world; what comes next is drawn from the process, all items shown alike; 'as the "
            "log': drawn by exposure as well",
            "model": f"GRU of width 64, {options.epochs:g} epochs on {options.users} users, one "
            "epoch setting for all systems",
            "influence": f"leave_one_out on {options.explained} of these users against the "
            "process's own influence: log-odds of the item that the process favours, and its "
            "contrast with the best of another cluster",
            "process": PROCESS,
            "systems": {name: json.dumps(block) for name, (_, block) in SYSTEMS.items()},
        },
        rows=rows,
        figures={
            f"{figure}_{key}": float(np.mean(values[system, metric]))
            for metric, figure in FIGURES.items()
            for system, (key, _) in SYSTEMS.items()
        },
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main(started(PARSER))
