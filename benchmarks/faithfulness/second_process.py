"""True influence on a second process, and how much data it takes: second_process.json.

    python -m benchmarks.faithfulness.second_process [--users 1000 3000 10000 30000]

The process of `mixed_log` is nothing that the library was tuned to. For each number of users a
model with the memory is trained, and the true next items of other events are explained. The truth
is what the process's own log-odds lose without an event, and its Shapley values by the same method.
Three errors are apart, all as root mean squares over events, relative to that of the truth:

- model error: what the model loses without an event, against what the process loses;
- method error: scores of the default explanation against the model's Shapley values from many more
  evaluations; events scored together are compared by their sum;
- whole error: scores of the default explanation against those of the process by the same method.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.faithfulness.mixed_log import Bools, Floats, MixedLog, make_log
from benchmarks.harness import Row, arguments, results_of, row_of, started, write_benchmark
from benchmarks.training_runs import small_gru, trained_once
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.functions import explain_function
from llm_influence.attribution.methods import GroupShapley, LeaveOneOut, Shapley
from llm_influence.attribution.target import Item
from llm_influence.data.splits import split_log
from llm_influence.evaluation.evaluate import predict_rows
from llm_influence.evaluation.metrics import ndcg_of_rows
from llm_influence.influence.influence import Influence
from llm_influence.numerics import spearman

CAUSE = 0.2
"""An event without which the process's log-odds change by so much is a cause."""
READ = 20
"""The model reads so many of the last events, and so the truth is of these too."""
PARSER = arguments(
    __doc__,
    "second_process",
    seeds=(0,),
    users={"type": int, "nargs": "+", "default": [1000, 3000, 10_000], "help": "of each log"},
    explained=(150, "test events explained"),
    reference=(40, "of these are explained with many evaluations too"),
    reference_evaluations=1000,
    epochs=8.0,
)


@dataclass(frozen=True, eq=False)
class Truth:
    """Of N examples with E events: (N, E) effects of removal, and (N, E) Shapley values."""

    removal: Floats
    shapley: Floats

    @classmethod
    def of(cls, made: MixedLog, users: Sequence[int]) -> Truth:
        """The truth of the last events of some users."""
        last = made.items.shape[1] - 1
        past = made.past(last, last - READ)
        removal, shapley = [], []
        for user in users:

            def value(masks: Bools, user: int = user) -> Floats:
                return made.values(user, past, masks)

            without = value(~np.eye(READ, dtype=bool))
            removal.append(value(np.ones((1, READ), dtype=bool)) - without)
            shapley.append(explain_function(value, READ, Shapley(evaluations=1000)).values)
        return cls(np.array(removal), np.array(shapley))


def relative(found: Floats, true: Floats) -> float:
    """Root mean square of the difference, relative to that of the truth."""
    return float(np.sqrt(np.square(found - true).mean() / np.square(true).mean()))


def auroc(scores: Floats, truth: Floats) -> float:
    """Mean over examples with causes: share of pairs of a cause and another event in order."""
    shares = []
    for own, effects in zip(np.abs(scores), np.abs(truth), strict=True):
        causes, others = own[effects >= CAUSE], own[effects < CAUSE]
        if len(causes) and len(others):
            pairs = causes[:, None] - others
            shares.append((pairs > 0).mean() + (pairs == 0).mean() / 2)
    return float(np.mean(shares))


def order(scores: Floats, truth: Floats) -> float:
    """Spearman correlation over all events of all examples that have an effect at all."""
    moved = np.abs(truth) > 0.01 * CAUSE
    return spearman(scores[moved], truth[moved])


def method_error(found: Sequence[Influence], exact: Sequence[Influence]) -> float:
    """Error of scores against more exact ones; a block is compared by its sum."""
    pairs = []
    for one, best in zip(found, exact, strict=True):
        alone = [place for place in range(len(one.events)) if place not in one.block]
        block = list(one.block)
        pairs += zip(one.values[alone], best.values[alone], strict=True)
        pairs += [(one.values[block].sum(), best.values[block].sum())] if block else []
    scores, truth = np.array(pairs).T
    return relative(scores, truth)


def figures(options: argparse.Namespace, users: int, seed: int) -> dict[str, float]:
    """All figures of one number of users."""
    made = make_log(seed, users=users)
    split = split_log(made.log)
    config = small_gru(
        options.work / f"users_{users}_{seed}",
        seed,
        epochs=options.epochs,
        rendering={"template": "fused", "max_events": READ},
        model={"item_head": {"score": "dot", "memory": {"enabled": True}}},
    )
    begun = time.process_time()
    model = trained_once(config, split)
    seconds = time.process_time() - begun
    ranks = predict_rows(model, split.test, config.evaluation)["rank"]
    chosen = np.arange(min(options.explained, len(split.test)))
    owners = [int(split.test.users[n]) for n in chosen]
    truth = Truth.of(made, owners)
    histories = [model.encoder.trim(split.test.history(int(n))) for n in chosen]
    ids = split.log.catalogue.ids
    items = [Item(ids[int(split.test.target_items[n])].as_py()) for n in chosen]

    def explained(explainer: Explainer, most: int) -> list[Influence]:
        pairs = list(zip(histories, items, strict=True))[:most]
        return [explainer.explain(history, item) for history, item in pairs]

    removed = explained(Explainer(model, LeaveOneOut(), fidelity_masks=0), len(chosen))
    default = explained(Explainer(model, fidelity_masks=0), len(chosen))
    exact = Shapley(evaluations=options.reference_evaluations, tolerance=0.0)
    best = explained(Explainer(model, exact, fidelity_masks=0), options.reference)
    scores = np.array([one.values for one in default])
    losses = np.array([one.values for one in removed])
    return {
        "training seconds": seconds,
        "ndcg10": float(ndcg_of_rows(ranks).mean()),
        "process ndcg10": process_ndcg(made),
        "auroc": auroc(scores, truth.removal),
        "auroc of leave one out": auroc(losses, truth.removal),
        "auroc of the process": auroc(truth.shapley, truth.removal),
        "spearman": order(scores, truth.shapley),
        "spearman of leave one out": order(losses, truth.removal),
        "model error": relative(losses, truth.removal),
        "method error": method_error(default[: options.reference], best),
        "whole error": relative(scores, truth.shapley),
    }


def process_ndcg(made: MixedLog) -> float:
    """NDCG@10 of the process itself on the last event of each user."""
    last = made.items.shape[1] - 1
    past = made.past(last)
    everyone = np.arange(len(made.items))
    logits = made.process.logits(everyone, past, np.ones(past.items.shape, dtype=bool))
    own = logits[everyone, made.items[:, -1]][:, None]
    return float(ndcg_of_rows((logits > own).sum(axis=1) + 1).mean())


def main(options: argparse.Namespace) -> None:
    """Measure each number of users and write the file."""
    results = results_of(options, epochs=options.epochs, explained=options.explained)
    rows: list[Row] = []
    for users in options.users:
        for seed in options.seeds:
            measured = results.keep(
                f"{users} users, seed {seed}",
                lambda users=users, seed=seed: figures(options, users, seed),
            )
            rows += [row_of("default", f"{users} users", n, v) for n, v in measured.items()]
    shown = {
        "second_law_auroc": "auroc",
        "second_law_spearman": "spearman",
        "second_law_model_error": "model error",
        "second_law_method_error": "method error",
    }
    chosen = 10_000 if 10_000 in options.users else options.users[-1]
    write_benchmark(
        Path(options.output),
        name="second_process",
        protocol={
            "log": "users of 30 events, 300 items; benchmarks.faithfulness.mixed_log",
            "model": f"a GRU with the memory, {options.epochs:g} epochs, {READ} events",
            "default": f"Explainer without options: {GroupShapley()!r}",
            "causes": f"events without which the process's log-odds change by {CAUSE}",
            "figures": f"of {chosen} users",
        },
        rows=rows,
        figures={
            key: float(
                np.mean(
                    [
                        row["value"]
                        for row in rows
                        if (row["task"], row["metric"]) == (f"{chosen} users", metric)
                    ]
                )
            )
            for key, metric in shown.items()
        },
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main(started(PARSER))
