"""Our attribution methods beside Captum's and shap's: docs/benchmarks/attribution_speed.json.

    python -m benchmarks.attribution.speed --model RUN [--part shapley10] [--core 0]

One model, one function. The file is written when all four parts are measured. Every explanation is
kept in ``--work``, so parts may run one after the other.
"""

from __future__ import annotations

import argparse
from importlib import metadata
from pathlib import Path

from threadpoolctl import threadpool_limits

from benchmarks.attribution import integrated_gradients, leave_one_out, shapley
from benchmarks.attribution.case import choose_cases
from benchmarks.attribution.masked_function import best_token_budget
from benchmarks.harness import Results, arguments, started, write_benchmark
from llm_influence.run import Run

PARTS = ("shapley10", "shapley40", "loo", "ig")
EVENTS = {"shapley10": 10, "shapley40": 40, "loo": 50, "ig": 50}
EVALUATIONS, TOLERANCE, GAP = 200, 0.1, 0.01
SEED = 0
PARSER = arguments(
    __doc__,
    "attribution_speed",
    seeds=(0, 1),
    model={"type": Path, "required": True, "help": "folder that `finetune` wrote"},
    part={"choices": PARTS, "nargs": "+", "help": "default: all"},
    histories=30,
    long_histories=(30, "of shapley40"),
    pilot=(8, "histories that choose the budgets of shapley40"),
    repeats=3,
    most_evaluations=40_000,
    reference_evaluations=16_384,
)


def part_of(name: str, run: Run, options: argparse.Namespace) -> shapley.Measured:
    """Rows and figures of one part."""
    count = options.long_histories if name == "shapley40" else options.histories
    cases = choose_cases(run.model, run.split.test, EVENTS[name], count, SEED)
    settings = {"model": str(options.model.resolve()), "core": options.core, "removal": "drop"}
    results = Results(options.work / f"{name}.jsonl", settings, resume=options.resume)
    shapley.warm(cases[0])
    first = cases[0]
    budget = results.keep(
        f"{first.key} | best token budget",
        lambda: best_token_budget(first.model, first.history, first.target),
    )
    if name == "loo":
        return leave_one_out.measure(cases, budget, options.repeats, results)
    if name == "ig":
        return integrated_gradients.measure(cases, GAP, options.repeats, results)
    short = name == "shapley10"
    setting = shapley.Setting(
        cases=cases,
        pilot=len(cases) if short else min(options.pilot, len(cases)),
        token_budget=budget,
        seeds=options.seeds if short else [SEED],
        tolerance=TOLERANCE,
        most_evaluations=options.most_evaluations,
        reference_evaluations=0 if short else options.reference_evaluations,
    )
    return shapley.measure(setting, results, evaluations=EVALUATIONS if short else None)


def main(options: argparse.Namespace) -> None:
    """Measure the chosen parts, and write when all are measured."""
    run = Run.open(options.model)
    run.model.eval()
    rows, figures = [], {}
    with threadpool_limits(1):
        for name in options.part or PARTS:
            some, more = part_of(name, run, options)
            rows, figures = rows + some, figures | more
            print(name, more, flush=True)
    if set(options.part or PARTS) != set(PARTS):
        print("one part alone: nothing is written; run without --part to write", flush=True)
        return
    write_benchmark(
        options.output,
        name="attribution_speed",
        protocol=protocol(run, options),
        rows=rows,
        figures=figures,
        seeds=options.seeds,
        versions={package: metadata.version(package) for package in ("captum", "shap")},
    )


def protocol(run: Run, options: argparse.Namespace) -> dict[str, object]:
    """What was measured and how."""
    return {
        "model": f"{run.config.model.backbone}, fine-tuned on {run.config.data.source}, "
        f"template {run.config.rendering.template}",
        "function": "log-odds of the history's first unseen recommendation, removal drop: the "
        "history is rendered again without the removed events",
        "histories": f"{options.histories} users drawn from all with enough events "
        f"({options.long_histories} for 40 events), the last events before the tested one; the "
        "same ones for every system",
        "threads": "one, for every system",
        "clock": "from a fresh task to scores, one history at a time; rendering is inside, the "
        "choice of the target is outside, for every system. Leave one out and integrated "
        f"gradients: fastest of {options.repeats}",
        "peers": "the function takes many masks a call, renders them, sorts them by length and "
        "runs them in batches under the fastest of five token budgets; nothing is remembered or "
        "shared between masks. Captum ShapleyValueSampling: a permutation a call, the most it "
        "permits; KernelShap: all samples in one call; FeatureAblation: the fastest "
        "perturbations_per_eval of five. shap PermutationExplainer: a permutation there and back "
        "a call; KernelExplainer: all samples in one call, no selection of features",
        "evaluations": "masks the function evaluates, repeated ones included; ours: distinct masks",
        "relative_rmse": "root mean square error of a history's scores / standard deviation of "
        f"the true values; median over histories, of 10 events over {len(options.seeds)} "
        "seeds each; peers' errors at 10 events are found on the table of all values, their "
        "seconds on the model",
        "truth": "10 events: exact, all 1,024 coalitions. 40 events: unbiased estimates: a game of "
        f"pairs is fitted on {options.reference_evaluations} coalitions, its Shapley values are "
        "known, and antithetic permutations of what it leaves take as many evaluations again; "
        "nothing of it is shared with our estimator. Their squared standard error (its root is a "
        "row) is taken from the squared error of every system",
        "ours": "shapley with tolerance 0, so that it spends the evaluations it is given; its own "
        "computation is inside the clock",
        "seconds_to_error": f"relative RMSE {TOLERANCE}: budgets double until the median error is "
        f"within, then {shapley.STEPS} halvings; on all histories for 10 events, on the "
        f"first {options.pilot} for 40 and then raised until all histories agree; at most "
        f"{options.most_evaluations} evaluations. The best peer is the one with the least "
        "seconds; one that has not reached the error stands with its largest budget, and the "
        "ratio to it is a lower bound",
        "leave_one_out": f"the two systems' values were equal to {leave_one_out.EQUAL:g} log-odds; "
        "ratio of the sums of seconds",
        "integrated_gradients": f"Captum LayerIntegratedGradients, "
        f"{integrated_gradients.STEPS} steps, fastest internal_batch_size of four, its own check "
        "of convergence left out of the clock; ours to "
        f"a completeness gap of {GAP}; the same baseline, mean; median over rows of the ratio",
        "precision": "float32, except where bfloat16 is named",
    }


if __name__ == "__main__":
    main(started(PARSER))
