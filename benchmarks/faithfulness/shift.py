"""How much removals confuse a model, by the way it reads positions: docs/benchmarks/shift.json.

    python -m benchmarks.faithfulness.shift [--seeds 0 1 2] [--only "absolute;random offset"]

Every variant is configs/movielens_100k.yaml with one change. Validation only; the same validation
users for every model. A finished variant and seed is not trained again.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence

import numpy as np

from benchmarks.harness import Row, arguments, results_of, selection, started, write_benchmark
from benchmarks.training_runs import MOVIELENS, open_split, train, validated
from llm_influence.attribution.explainer import Explainer
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import Split
from llm_influence.evaluation.metrics import ndcg_of_rows, protocol
from llm_influence.evaluation.shift import RemovalShift, removal_shift
from llm_influence.influence.influence import Influence
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import History

VARIANTS: dict[str, list[str]] = {
    "absolute": ["model.random_offset=0"],
    "random offset": ["model.random_offset=400"],
    "event dropout": ["model.random_offset=0", "train.event_dropout=0.2"],
    "both": ["model.random_offset=400", "train.event_dropout=0.2"],
    "offset from end": ["model.random_offset=400", "model.positions=end"],
}
"""Changes of the configuration by variant."""
FIGURES = ("shift_drop", "opposed_share", "standard_error_ratio")
PARSER = arguments(
    __doc__,
    "shift",
    seeds=(0, 1, 2),
    epochs=(float, "of every variant; default: those of the configuration"),
    only=(str, "names of variants, with semicolons between; default: all"),
    shipped=("random offset", "the variant behind the figures"),
    users=(100, "validation users whose histories are explained"),
    log_users=(int, "the first so many users of the log only, for a trial"),
)


def config_of(options: argparse.Namespace, variant: str, seed: int) -> RunConfig:
    """The run of one variant and seed."""
    changes = [*VARIANTS[variant], f"train.seed={seed}"]
    if options.epochs is not None:
        changes.append(f"train.epochs={options.epochs}")
    folder = options.work / f"{variant.replace(' ', '_')}_{seed}"
    return RunConfig.load(MOVIELENS, [f"--{change}" for change in (f"output={folder}", *changes)])


def longest_histories(split: Split, model: InfluenceModel, count: int) -> list[History]:
    """Histories of ``count`` validation users who fill the context, drawn with seed 0."""
    rows = split.validation
    histories = [rows.history(row) for row in range(len(rows))]
    full = [history for history in histories if len(history) >= model.encoder.max_events]
    drawn = np.random.default_rng(0).permutation(len(full))[:count]
    return [full[number] for number in drawn]


def by_mask(model: InfluenceModel, histories: Sequence[History]) -> float:
    """The shift of ``leave_one_out`` by removal ``mask``, which moves no token."""
    explainer = Explainer(model, "leave_one_out", removal="mask", fidelity_masks=0)
    scores = [influence.values for influence in explainer.explain(histories)]
    return RemovalShift.of(scores).shift


def default_explanations(model: InfluenceModel, histories: Sequence[History]) -> dict[str, float]:
    """Share of opposed users, and the size of standard errors, under the default explanation."""
    influences = Explainer(model, fidelity_masks=0).explain(histories)
    ratios = [error_ratio(influence) for influence in influences]
    return {
        "opposed_share": float(np.mean([influence.values.sum() < 0 for influence in influences])),
        "standard_error_ratio": float(np.median(ratios)),
    }


def error_ratio(influence: Influence) -> float:
    """Largest standard error over the largest effect; events scored together are one effect."""
    if influence.standard_errors is None:
        return float("nan")
    alone = np.ones(len(influence.values), dtype=bool)
    alone[list(influence.block)] = False
    effects, errors = (
        np.append(numbers[alone], numbers[~alone].sum())
        for numbers in (influence.values, influence.standard_errors)
    )
    largest = np.abs(effects).max()
    return float(errors.max() / largest) if largest else float("nan")


def measured(config: RunConfig, split: Split, users: int) -> dict[str, object]:
    """Train one variant and measure it."""
    shutil.rmtree(config.output, ignore_errors=True)
    model = train(config, split).influence_model.eval()
    ranks, nll = validated(model, split.validation)
    histories = longest_histories(split, model, users)
    dropped = removal_shift(model, histories)
    shutil.rmtree(config.output)
    return {
        "ndcg@10": float(ndcg_of_rows(ranks).mean()),
        "nll": float(nll.mean()),
        "shift_drop": dropped.shift,
        "shift_mask": by_mask(model, histories),
        "opposed_leave_one_out": dropped.opposed,
        "common": float(np.mean(dropped.mean)),
        "common_size": float(np.mean(np.abs(dropped.mean))),
        "spread": float(np.median(dropped.spread)),
        **default_explanations(model, histories),
        "events": model.encoder.max_events,
    }


def row_of(variant: str, seed: int, values: dict[str, float]) -> Row:
    """The row of one variant and seed; JSON has no nan."""
    row: Row = {
        "system": variant,
        "task": "removal of old events, validation",
        "metric": "shift_drop",
        "value": values["shift_drop"],
        "seed": seed,
        "changed": "; ".join(VARIANTS[variant]),
    }
    known = {name: None if np.isnan(value) else value for name, value in values.items()}
    return row | {name: value for name, value in known.items() if name != "shift_drop"}


def main(options: argparse.Namespace) -> None:
    """Train, measure and write; seed by seed, so that all variants have the same seeds first."""
    split = open_split(RunConfig.load(MOVIELENS), options.log_users).without_test()
    results = results_of(
        options, epochs=options.epochs, users=options.users, log_users=options.log_users
    )
    for seed in options.seeds:
        for variant in selection(options.only, list(VARIANTS)):
            config = config_of(options, variant, seed)
            results.keep(
                f"{variant}, seed {seed}", lambda c=config: measured(c, split, options.users)
            )
    rows = [
        row_of(variant, seed, results.keep(key, dict))
        for variant in VARIANTS
        for seed in options.seeds
        if (key := f"{variant}, seed {seed}") in results
    ]
    write(options, split, rows)


def write(options: argparse.Namespace, split: Split, rows: Sequence[Row]) -> None:
    """Write the rows, and the means over the seeds of the shipped variant as figures."""
    config = RunConfig.load(MOVIELENS)
    shipped = [row for row in rows if row["system"] == options.shipped]
    figures = {
        name: None
        if any(row.get(name, row["value"]) is None for row in shipped)
        else float(np.mean([row.get(name, row["value"]) for row in shipped]))
        for name in (FIGURES if shipped else ())
    }
    write_benchmark(
        options.output,
        name="shift",
        protocol={
            "baseline": str(MOVIELENS),
            "split": split.description,
            "validation": protocol(split.validation, config.evaluation),
            "test": "never used",
            "users": f"{options.users} validation users who fill the context, the same for all",
            "events": f"the last {config.rendering.max_events} of each user, as the model reads",
            "shift": "median over users: size of the mean leave-one-out score of the oldest half "
            "over the standard deviation within it; log-odds of the first recommendation",
            "shift_drop, shift_mask": "by removal",
            "opposed_leave_one_out": "share of users whose leave-one-out scores by drop have a "
            "negative sum",
            "opposed_share": "the same under the default explanation",
            "standard_error_ratio": "median over users: largest standard error over largest "
            "effect of the default explanation",
            "common, common_size, spread": "mean over users of the mean score of the oldest half, "
            "of its size, and median over users of the standard deviation",
            "figures": f"of the variant {options.shipped!r}, mean over seeds",
        },
        rows=rows,
        figures=figures,
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main(started(PARSER))
