"""What came of a search: its trials, its best run, and which options mattered."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_influence.files import write_text
from llm_influence.training.search.space import Settings

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

FEW = 10
"""Complete trials below which no importance is told: so few say nothing of several options."""

SHOWN = 10
"""Trials in the text, the best ones."""


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial.

    Attributes:
        number: From 0; its folder is ``trials/0000``.
        state: complete, pruned (ended early), failed, or running (broken off, to be gone on with).
        value: The best validation metric it reached; None where it reached none.
        validations: How many it had.
        seconds: It took, validations included.
        settings: Values by dotted option.
        error: Why it failed.
    """

    number: int
    state: str
    value: float | None
    validations: int
    seconds: float
    settings: Settings
    error: str | None


@dataclass(frozen=True, slots=True)
class SearchSummary:
    """A search so far.

    Attributes:
        metric: What was maximised, on validation; "" before any validation.
        trials: All trials in their order.
        best: The best complete one.
        importances: Share of the metric's variation by option (PED-ANOVA, Watanabe et al. 2023,
            arXiv:2304.10255), the largest first; None where ``note`` says why.
        note: Why there are no importances, or how they are to be read.
    """

    metric: str
    trials: tuple[TrialRecord, ...]
    best: TrialRecord | None
    importances: dict[str, float] | None
    note: str

    def write(self, folder: Path) -> None:
        """Write ``summary.json`` and ``summary.txt``.

        Raises:
            OutputError: A file cannot be written.
        """
        tree = asdict(self) | {"states": dict(Counter(trial.state for trial in self.trials))}
        write_text(folder / "summary.json", json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
        write_text(folder / "summary.txt", self.to_text() + "\n")

    def to_text(self) -> str:
        """Counts, the best trials and the importances as plain text."""
        states = Counter(trial.state for trial in self.trials)
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        lines = [f"{len(self.trials)} trials: {counts}", f"metric: {self.metric} on validation", ""]
        lines += _table(self.trials)
        lines += ["", f"importances: {self.note}"]
        lines += [f"  {share:6.1%}  {name}" for name, share in (self.importances or {}).items()]
        failed = [trial for trial in self.trials if trial.state == "failed"]
        lines += [f"failed {trial.number:04d}: {trial.error}" for trial in failed]
        return "\n".join(lines)


def summarise(study: Study, settings: Sequence[Settings]) -> SearchSummary:
    """The summary of a study.

    Args:
        study: The study.
        settings: Values of each of its trials, as the configuration writes them.
    """
    pairs = zip(study.get_trials(), settings, strict=True)
    trials = tuple(_record(trial, values) for trial, values in pairs)
    complete = [trial for trial in trials if trial.state == "complete"]
    best = max(complete, key=_value) if complete else None
    importances, note = _importances(study, complete)
    metrics = [trial.user_attrs.get("metric", "") for trial in study.get_trials(deepcopy=False)]
    return SearchSummary(max(metrics, default=""), trials, best, importances, note)


def _value(trial: TrialRecord) -> float:
    return -math.inf if trial.value is None else trial.value


def _record(trial: FrozenTrial, settings: Settings) -> TrialRecord:
    name = trial.state.name.lower()
    return TrialRecord(
        number=trial.number,
        state={"fail": "failed"}.get(name, name),
        value=max(trial.intermediate_values.values(), default=None),
        validations=len(trial.intermediate_values),
        seconds=trial.user_attrs.get("seconds", 0.0),
        settings=settings,
        error=trial.user_attrs.get("error"),
    )


def _importances(
    study: Study, complete: Sequence[TrialRecord]
) -> tuple[dict[str, float] | None, str]:
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if len(complete) < FEW:
        return None, f"too few trials to tell ({len(complete)} complete, {FEW} are needed)"
    if len({trial.value for trial in complete}) == 1:
        return None, "none to tell: all complete trials reached the same value"
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    note = f"of {len(complete)} complete trials (PED-ANOVA); those ended early are not counted"
    return found, note


def _table(trials: Sequence[TrialRecord]) -> list[str]:
    """The best trials, one a line, an option a column."""
    ranked = sorted(
        (trial for trial in trials if trial.value is not None),
        key=lambda trial: (trial.state != "complete", -_value(trial)),
    )
    if not ranked:
        return ["no trial reached a validation"]
    names = list(ranked[0].settings)
    rows = [["trial", "state", "value", "seconds", *names]]
    for trial in ranked[:SHOWN]:
        values = [_short(trial.settings.get(name)) for name in names]
        shown = [f"{trial.number:04d}", trial.state, f"{trial.value:.4f}", f"{trial.seconds:.0f}"]
        rows.append(shown + values)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
