"""Prefixes against one causal evaluation as training examples: docs/benchmarks/examples.json.

    python -m benchmarks.training.examples [--epochs 2] [--only "causal;prefixes"]

Every row is configs/amazon_beauty.yaml without memory, with one kind of examples and of positions,
with item texts and with random directions in their place. It is measured on validation; the test
split is never used. Causal settings train for ``--epochs``, prefixes for half of them: an epoch
takes longer, so the seconds of each row are what to compare.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.harness import Row, arguments, results_of, selection, started, write_benchmark
from benchmarks.training.ablations import without_texts
from benchmarks.training_runs import measure_on_validation, open_split, with_interval
from llm_influence.config.run import RunConfig
from llm_influence.evaluation.metrics import ndcg_of_rows, protocol, ranking_metrics

BEAUTY = Path("configs/amazon_beauty.yaml")
ALONE = "model.item_head.memory.enabled=false"
"""The memory is fitted apart and would hide what the language model learns."""
PREFIXES = ["train.examples=prefixes"]
EXAMPLES = {
    "causal": [],
    "prefixes": PREFIXES,
    "prefixes, positions from the end": [*PREFIXES, "model.positions=end"],
}
IDS_ALONE = ", ids alone"
SETTINGS = {name + texts: words for texts in ("", IDS_ALONE) for name, words in EXAMPLES.items()}
PARSER = arguments(
    __doc__,
    "examples",
    epochs=(2.0, "epochs of causal settings; prefixes have half of them"),
    only=(str, "names of settings, with semicolons between; default: all"),
    users=(int, "the first so many only, for a trial"),
    source=(str, "event table; default: that of the configuration"),
    items=(str, "item table; default: that of the configuration"),
)


def config_of(name: str, options: argparse.Namespace) -> RunConfig:
    """The run of one setting."""
    words = SETTINGS[name]
    epochs = options.epochs / 2 if words else options.epochs
    given = {"data.source": options.source, "data.items": options.items}
    data = [f"{key}={value}" for key, value in given.items() if value is not None]
    usual = [f"output={options.work / 'run'}", f"train.epochs={epochs}", ALONE]
    return RunConfig.load(BEAUTY, [f"--{word}" for word in [*usual, *data, *words]])


def row_of(name: str, measured: dict, users: np.ndarray, epochs: float) -> Row:
    """The values of a setting."""
    ranks, nll = np.array(measured["ranks"]), np.array(measured["nll"])
    return {
        "system": name,
        "task": "next item, validation",
        "changed": "; ".join(SETTINGS[name]) or "nothing",
        "metric": "ndcg@10",
        **with_interval(ndcg_of_rows(ranks), users),
        "hr@10": ranking_metrics(ranks)["hr@10"],
        **with_interval(nll, users, "nll"),
        "epochs": epochs,
        "seconds": measured["seconds"],
    }


def main(options: argparse.Namespace) -> None:
    """Measure the settings that have no result yet, then write all that have one."""
    config = config_of("causal", options)
    split = open_split(config, options.users)
    results = results_of(options, epochs=options.epochs, users=options.users)
    for name in selection(options.only, list(SETTINGS)):
        prepare = without_texts if name.endswith(IDS_ALONE) else None
        results.keep(
            name,
            lambda name=name, prepare=prepare: measure_on_validation(
                config_of(name, options), split, prepare
            ),
        )
    measured = {name: results.keep(name, dict) for name in SETTINGS if name in results}
    users = split.validation.users
    rows = [
        row_of(name, result, users, config_of(name, options).train.epochs)
        for name, result in measured.items()
    ]
    write_benchmark(
        options.output,
        name="examples",
        protocol={
            "baseline": f"{BEAUTY} without memory; ids alone: random directions instead of "
            "item texts",
            "split": split.description,
            "validation": protocol(split.validation, config.evaluation),
            "test": "never used",
            "epoch": "the best on validation",
            "interval": "95%, bootstrap over users",
            "nll": "of the true item among all items; far less noisy than NDCG@10",
            "seconds": "of training, validations and building the model included",
            "threads": options.threads,
            "rows": f"{len(rows)} settings, one seed each",
        },
        rows=rows,
        figures={
            f"{figure}_{row['system'].replace(',', '').replace(' ', '_')}": row[key]
            for row in rows
            for figure, key in (("ndcg10_validation", "value"), ("nll_validation", "nll"))
        },
        seeds=[config.train.seed],
    )


if __name__ == "__main__":
    main(started(PARSER))
