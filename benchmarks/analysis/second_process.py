"""Strengths and half-lives of behaviours on processes that nothing was tuned to.

    python -m benchmarks.analysis.second_process

From the truth: the exact contributions of events to drawn targets, as influence tables, go through
`analyze factors` and `analyze dynamics`. Two processes are read:

- log-odds: of `benchmarks.faithfulness.mixed_log`, where the pulls of events add up in the
  log-odds. A contribution is what the centred logit of the item loses without the event.
- excitation: of `benchmarks.prediction.excitation_log`, where the next item has one parent event. A
  contribution is the event's excitation of the item, minus its mean over all items.

Beside them stand the same analyses of contributions to what was chosen, which multiply strength and
selection. From a model: the gates of a memory that is fitted alone on the excitation log.

Errors are relative, the largest over the behaviours of a nonzero weight.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.faithfulness import mixed_log
from benchmarks.harness import Row, arguments, results_of, row_of, started, write_benchmark
from benchmarks.prediction import excitation_log
from llm_influence.analysis.decay import behavior_weights
from llm_influence.analysis.dynamics import analyze_dynamics
from llm_influence.analysis.strength import behavior_strengths, strengths_of_memory
from llm_influence.analysis.tables import InfluenceView
from llm_influence.attribution.drawn import Drawn
from llm_influence.config.analyses import DynamicsOptions
from llm_influence.config.model import MemoryConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import split_log
from llm_influence.influence.facts import QualityCard
from llm_influence.influence.influence import Influence, to_arrow
from llm_influence.influence.table_files import write_table
from llm_influence.modeling.memory_fit import fit_memory
from llm_influence.rendering.vocabulary import Vocabulary

HOUR = 3600.0
MOST = 10.0
"""An error without a bound, of a half-life that was not found, counts so much."""
SHARD = 2000
"""Explanations of one file."""
CARD = QualityCard("true_influence", "drop", "target", 0.0, evaluations=0, seed=0, left_out=0)
Effects = Callable[[int, bool], np.ndarray]
"""(E, I) contributions of the events of a user to every item; at the time of the last event, or at
that of the event that was chosen."""
Truth = Mapping[str, tuple[float, float]]
"""Weight and half-life in hours of each behaviour."""
PARSER = arguments(
    __doc__,
    "second_process_analysis",
    seeds=(0,),
    users=(3000, "users of a log whose contributions are read"),
    draws=(4, "drawn targets of a user"),
    items=(16, "items of each of these"),
    memory_users=(3000, "users of a log on which a memory is fitted"),
)


def log_odds(seed: int, users: int) -> tuple[BehaviorLog, Effects, Truth]:
    """The process whose pulls add up in the log-odds."""
    made = mixed_log.make_log(seed, users=users)
    last = made.items.shape[1] - 1
    masks = np.concatenate([np.ones((1, last), dtype=bool), ~np.eye(last, dtype=bool)])

    def effects(user: int, chosen: bool) -> np.ndarray:
        moment = made.times[user, last if chosen else last - 1]
        rows = (a[user : user + 1, :last] for a in (made.items, made.behaviors, made.times))
        items, behaviors, times = rows
        past = mixed_log.Past(items, behaviors, moment - times).repeat(0, len(masks))
        logits = made.process.logits(np.full(len(masks), user), past, masks)
        logits -= logits.mean(axis=1, keepdims=True)
        lost: np.ndarray = logits[0] - logits[1:]
        return lost

    truth = {name: (weight, life / HOUR) for name, (weight, life) in mixed_log.BEHAVIORS.items()}
    return made.log, effects, truth


def excitation(seed: int, users: int) -> tuple[BehaviorLog, Effects, Truth]:
    """The process in which the next item has one parent event."""
    made = excitation_log.make_log("mixture", seed, users=users)
    last = made.items.shape[1] - 1

    def effects(user: int, chosen: bool) -> np.ndarray:
        ages = made.times[user, last if chosen else last - 1] - made.times[user, :last]
        drawn = made.law.excitation(made.behaviors[user, :last], ages)[:, None]
        parts: np.ndarray = drawn * made.law.transitions[made.items[user, :last]]
        return parts - parts.mean(axis=1, keepdims=True)

    return made.log, effects, excitation_truth()


def excitation_truth() -> Truth:
    """Weights and half-lives of the excitation log."""
    known = excitation_log.BEHAVIORS.items()
    return {name: (weight, life / HOUR) for name, (_, weight, life) in known}


PROCESSES = {"log-odds": log_odds, "excitation": excitation}


def explanations(log: BehaviorLog, effects: Effects, targets: Sequence[Drawn]) -> Iterator:
    """True contributions of the events before the last one, to drawn or (none given) chosen."""
    ids = log.catalogue.ids.to_pylist()
    counts = np.zeros(len(ids), dtype=np.int64)
    for user in range(len(log)):
        whole = log.at(user)
        history = whole.keep(slice(0, len(whole) - 1))
        kind = "drawn" if targets else "item"
        drawn = [target.codes([history], counts)[0].tolist() for target in targets]
        scores = effects(user, not targets)
        for codes in drawn or [[int(whole.items[-1])]]:
            own, name = scores[:, codes].mean(axis=1), ", ".join(ids[code] for code in codes)
            yield Influence(
                user_id=history.user_id,
                events=tuple(history.events()),
                values=own,
                prompt_score=0.0,
                target=kind,
                target_id=name,
                target_name=name,
                base_value=0.0,
                full_value=float(own.sum()),
                prediction=float("nan"),
                quality=CARD,
            )


def write(records: Iterator[Influence], folder: Path) -> None:
    """Influence tables of the records."""
    shard: list[Influence] = []
    for number, record in enumerate(records, start=1):
        shard.append(record)
        if number % SHARD == 0:
            write_table(to_arrow(shard, "truth"), folder / f"part-{number:08d}.parquet")
            shard = []
    if shard:
        write_table(to_arrow(shard, "truth"), folder / "part-last.parquet")


def errors(found: Mapping[str, tuple[float, float | None]], truth: Truth) -> dict[str, float]:
    """Relative errors of weights and half-lives, and the largest of both."""
    top = max(abs(weight) for weight, _ in truth.values())
    figures = {}
    for name, (weight, life) in truth.items():
        own, own_life = found[name]
        if not weight:
            figures[f"{name} weight"] = own
            continue
        figures[f"{name} weight error"] = abs(own * top / weight - 1)
        missed = MOST if own_life is None else min(abs(own_life / life - 1), MOST)
        figures[f"{name} half-life error"] = missed
    for what in ("weight", "half-life"):
        own = [value for name, value in figures.items() if name.endswith(f"{what} error")]
        figures[f"largest {what} error"] = max(own)
    return figures


def from_truth(options: argparse.Namespace, process: str, seed: int) -> dict[str, float]:
    """Errors of the analyses of true contributions, to drawn targets and to what was chosen."""
    log, effects, truth = PROCESSES[process](seed, options.users)
    count = options.draws
    targets = [Drawn(count, options.items, seed=seed, number=n) for n in range(count)]
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        drawn, chosen = Path(folder) / "drawn", Path(folder) / "chosen"
        for place, own in ((drawn, targets), (chosen, [])):
            place.mkdir()
            write(explanations(log, effects, own), place)
        with InfluenceView(drawn) as view:
            strengths = {
                row["behavior"]: (row["strength"], row["half_life_hours"])
                for row in behavior_strengths(view)
            }
            figures |= errors(strengths, truth)
            weights = {name: weight for name, (weight, _) in strengths.items()}
            figures |= dynamics(view, weights, truth, "dynamics")
        with InfluenceView(chosen) as view:
            weights = {row["behavior"]: row["weight"] for row in behavior_weights(view)}
            figures |= dynamics(view, weights, truth, "chosen")
    return figures


def dynamics(
    view: InfluenceView, weights: Mapping[str, float], truth: Truth, prefix: str
) -> dict[str, float]:
    """Errors of the weights, and of the half-lives by `analyze dynamics`."""
    table = analyze_dynamics(view, DynamicsOptions(by=("behavior",))).tables["half_lives"]
    lives = {row["level"]: row["half_life_hours"] for row in table.records}
    found = {name: (weights[name], lives[name]) for name in truth}
    return {f"{prefix}: {name}": value for name, value in errors(found, truth).items()}


def from_memory(options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Errors of the gates of a memory that is fitted alone on the training events."""
    made = excitation_log.make_log("mixture", seed, users=options.memory_users)
    log = split_log(made.log).train
    reach = int(np.diff(log.offsets).max())
    memory = fit_memory(log, Vocabulary.fit(log), MemoryConfig(), reach=reach, seed=seed)
    found = {
        row["behavior"]: (row["strength"], row["half_life_hours"])
        for row in strengths_of_memory(memory)
    }
    return errors(found, excitation_truth())


def main(options: argparse.Namespace) -> None:
    """Measure every process and write the file."""
    sizes = {name: getattr(options, name) for name in ("users", "draws", "items", "memory_users")}
    results = results_of(options, **sizes)
    rows: list[Row] = []
    for seed in options.seeds:
        for process in PROCESSES:
            figures = results.keep(
                f"{process} {seed}", lambda p=process, s=seed: from_truth(options, p, s)
            )
            rows += [row_of("truth", f"{process} {seed}", n, v) for n, v in figures.items()]
        figures = results.keep(f"memory {seed}", lambda s=seed: from_memory(options, s))
        rows += [row_of("memory", f"excitation {seed}", n, v) for n, v in figures.items()]

    def largest(system: str, metric: str) -> float:
        values = [r["value"] for r in rows if (r["system"], r["metric"]) == (system, metric)]
        return float(max(values))

    write_benchmark(
        Path(options.output),
        name="second_process_analysis",
        protocol={
            "truth": f"{options.users} users, {options.draws} draws of {options.items} items each",
            "model": f"a memory alone, {options.memory_users} users, excitation log",
            "errors": "relative, the largest over behaviours, processes and seeds",
            "chosen": "the same from contributions to what was chosen, without drawn targets",
        },
        rows=rows,
        figures={
            "second_law_weight_error": largest("truth", "largest weight error"),
            "second_law_half_life_error": largest("truth", "largest half-life error"),
            "second_law_dynamics_error": largest("truth", "dynamics: largest half-life error"),
            "second_law_weight_error_model": largest("memory", "largest weight error"),
            "second_law_half_life_error_model": largest("memory", "largest half-life error"),
            "second_law_weight_error_chosen": largest("truth", "chosen: largest weight error"),
            "second_law_half_life_error_chosen": largest(
                "truth", "chosen: largest half-life error"
            ),
        },
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main(started(PARSER))
