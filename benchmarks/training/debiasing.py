"""Does weighting by inverse propensity undo a confounded log? On logs whose law is known.

    python -m benchmarks.training.debiasing [--output runs/debiasing] [--seeds 0 1 2]

Items are shown unequally often, whatever a user wants, and taken by affinity times exposure
(`PlantedConfig.exposure_spread`). Small GRUs are trained on such a log without weights, with
popularity as propensity, and with the true exposures. They are then asked about other users: what
would come next if all items were shown alike (drawn from the law), and which events moved that.
Goes on where it was broken off. Writes docs/benchmarks/debiasing.json.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import write_benchmark
from benchmarks.whole_log import fitted
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.target import Contrast, Item, Target
from llm_influence.config.run import RunConfig
from llm_influence.config.synthetic import PlantedConfig
from llm_influence.datasets.planted import Truth, generate
from llm_influence.evaluation.metrics import ndcg_of_rows, target_ranks
from llm_influence.faithfulness.recovery import recovery
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import FloatArray
from llm_influence.utils import write_text

LAW = {"half_life": 12 * 3600.0, "clusters": 4, "items": 40, "max_events": 12, "temperature": 0.6}
SPREAD = 1.0
"""Of the logarithm of exposures: of 40 items the most shown one is shown some 60 times as often
as the least."""

SYSTEMS: dict[str, dict[str, object]] = {
    "no weights": {},
    "popularity, power 0.5": {"source": "popularity"},
    "popularity, power 1": {"source": "popularity", "power": 1.0, "clip": 0.01},
    "true exposure": {"source": "exposure", "column": "exposure", "clip": 0.01},
}
KEYS = {
    "no weights": "none",
    "popularity, power 0.5": "popularity_half",
    "popularity, power 1": "popularity",
    "true exposure": "exposure",
}
Row = dict[str, str | float]


def run_config(options: argparse.Namespace, seed: int, propensity: dict[str, object]) -> RunConfig:
    """A small GRU with learned item vectors, one token an event."""
    rate = options.learning_rate
    return RunConfig.model_validate(
        {
            "output": str(options.output),
            "rendering": {"template": "fused", "max_events": LAW["max_events"]},
            "model": {
                "backbone": "gru",
                "recurrent": {"width": 64},
                "dropout": 0.0,
                "adapter": {"kind": "full"},
                "item_head": {"score": "dot"},
                "behavior_head": {"weight": 0.0},
            },
            "train": {
                "epochs": options.epochs,
                "batch_size": 64,
                "learning_rate": rate,
                "item_learning_rate": rate,
                "weight_decay": 0.0,
                "precision": "fp32",
                "propensity": propensity,
                "seed": seed,
            },
            "evaluation": {"exclude_seen": False},
        }
    )


def ranking(model: InfluenceModel, truth: Truth, seed: int) -> dict[str, float]:
    """How well the model knows what is wanted, and what is taken."""
    histories = [truth.history(user) for user in range(len(truth.log))]
    law = np.stack([truth.law.log_probabilities(history) for history in histories])
    random = np.random.default_rng([seed, 7])
    wanted = (law + random.gumbel(size=law.shape)).argmax(axis=1)
    taken = truth.log.items[truth.log.offsets[1:] - 1]
    logits = torch.cat([found.item_logits.float().cpu() for _, found in model.predict(histories)])
    ours = logits.double().log_softmax(-1).numpy()
    nobody = torch.full((len(histories), 1), -1)
    return {
        "ndcg@10, shown alike": _ndcg(logits, wanted, nobody),
        "ndcg@10, as the log": _ndcg(logits, taken, nobody),
        "log_likelihood, shown alike": float(ours[np.arange(len(wanted)), wanted].mean()),
        "divergence_from_law": float((np.exp(law) * (law - ours)).sum(axis=1).mean()),
        "ndcg@10 of the law, shown alike": _ndcg(torch.from_numpy(law), wanted, nobody),
    }


def _ndcg(logits: torch.Tensor, came: np.ndarray, seen: torch.Tensor) -> float:
    ranks = target_ranks(logits, torch.from_numpy(came.astype(np.int64)), seen)
    return float(ndcg_of_rows(ranks.numpy()).mean())


def influence(model: InfluenceModel, truth: Truth, users: int) -> dict[str, float]:
    """Recovery of the true influence on an item's log-odds and on its contrast with another."""
    found = {}
    for target in ("item", "contrast"):
        asked = replace(truth, target=target)
        scores = _scores(model, asked, users)
        means = recovery(scores, asked.influence[:users], asked.is_cause[:users]).means()
        for metric in ("spearman", "auroc"):
            found[f"{metric} of influence, {target}"] = means[metric]
        sizes = [np.abs(s - t) for s, t in zip(scores, asked.influence, strict=False)]
        found[f"error of influence, {target}"] = float(np.concatenate(sizes).mean())
    return found


def _scores(model: InfluenceModel, truth: Truth, users: int) -> list[FloatArray]:
    ids, together = truth.law.item_ids.to_pylist(), defaultdict[Target, list[int]](list)
    for user in range(users):
        chosen = ids[truth.targets[user]]
        other = None if truth.others is None else ids[truth.others[user]]
        together[Item(chosen) if other is None else Contrast(chosen, other)].append(user)
    explainer, scores = Explainer(model, "leave_one_out", fidelity_masks=0), {}
    for target, same in together.items():
        records = explainer.explain([truth.history(user) for user in same], target)
        scores |= {user: record.scores for user, record in zip(same, records, strict=True)}
    return [scores[user] for user in range(users)]


def measured(options: argparse.Namespace) -> Iterator[Row]:
    """A row a seed, system and metric; finished ones are read from the folder."""
    for seed in options.seeds:
        config = PlantedConfig(seed=seed, users=options.users, exposure_spread=SPREAD, **LAW)
        log, _ = generate(config)
        asked = config.model_copy(update={"users": options.test_users, "user_seed": 1})
        _, truth = generate(asked)
        for system, propensity in SYSTEMS.items():
            folder = options.output / f"seed_{seed}" / KEYS[system]
            done = folder / "measured.json"
            if not done.exists():
                model = fitted(run_config(options, seed, propensity), log, folder)
                found = ranking(model, truth, seed) | influence(model, truth, options.explained)
                write_text(done, json.dumps(found) + "\n")
            found = json.loads(done.read_text(encoding="utf-8"))
            print(f"seed {seed} {system}: {json.dumps(found)}", flush=True)
            for metric, value in found.items():
                yield {"system": system, "task": f"seed {seed}", "metric": metric, "value": value}


def figures(rows: list[Row]) -> dict[str, float]:
    """Means over seeds."""
    short = {
        "ndcg@10, shown alike": "ndcg10",
        "ndcg@10, as the log": "ndcg10_confounded",
        "divergence_from_law": "divergence",
        "spearman of influence, item": "influence_spearman",
        "auroc of influence, item": "influence_auroc",
        "error of influence, item": "influence_error",
        "spearman of influence, contrast": "contrast_spearman",
        "auroc of influence, contrast": "contrast_auroc",
    }
    return {
        f"{key}_{KEYS[system]}": float(
            np.mean([r["value"] for r in rows if (r["system"], r["metric"]) == (system, metric)])
        )
        for metric, key in short.items()
        for system in SYSTEMS
    }


def main(options: argparse.Namespace) -> None:
    """Plant, train, ask, write."""
    torch.set_num_threads(options.threads)
    rows = list(measured(options))
    found = figures(rows)
    print(json.dumps(found, indent=1))
    write_benchmark(
        options.json,
        name="debiasing",
        protocol={
            "data": "generated by a known law (docs/how-to/synthetic_truth.md); what comes next in the "
            "training log is drawn by the law's probability times the item's exposure",
            "exposures": f"log-normal with spread {SPREAD}, independent of affinity",
            "asked": "other users of the same law, with histories from the same confounded world; "
            "what comes next is drawn from the law, all items shown alike; 'as the log': drawn by "
            "exposure as well",
            "model": f"GRU of width 64, {options.epochs:g} epochs on {options.users} users, one "
            "epoch setting for all systems",
            "influence": f"leave_one_out on {options.explained} of these users against the law's "
            "own influence: log-odds of the item that the law favours, and its contrast with "
            "the best of another cluster",
            "law": LAW,
            "systems": {name: json.dumps(block) for name, block in SYSTEMS.items()},
        },
        rows=rows,
        figures=found,
        seeds=options.seeds,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/debiasing"))
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/debiasing.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--users", type=int, default=2500)
    parser.add_argument("--test-users", type=int, default=2000)
    parser.add_argument("--explained", type=int, default=200)
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=1)
    main(parser.parse_args())
