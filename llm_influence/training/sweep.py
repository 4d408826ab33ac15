"""What a running trial tells its study: every validation of the trainer.

The options a search changes: their draws, and the runs made of them.

What came of a search: its trials, its best run, and which options mattered.

A search: trials one after the other, kept so that a broken one goes on where it was.

<output>/search.yaml     what is searched, the base run written out
<output>/study.db        Optuna's study (SQLite); `optuna-dashboard` reads it
<output>/trials/0000/    a trial: a run folder without test metrics, checkpoints and the copy of the
                         untuned backbone; `error.txt` where it failed
<output>/text_vectors/   of the items, shared by all trials
<output>/summary.json, summary.txt, best.yaml
"""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import math
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm_influence.config.document import set_option
from llm_influence.config.run import PrunerConfig, RunConfig, SearchConfig, SearchedOption
from llm_influence.errors import ConfigError, OutputError
from llm_influence.modeling.adapters import KINDS
from llm_influence.modeling.backbone import on_cpu
from llm_influence.training.finetune import finetune
from llm_influence.utils import require, write_text

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial


class ValidationReports(TrainerCallback):
    """Reports each validation to a trial and ends it where the study's pruner says so.

    Validations are counted from 1; one that a run repeats after a break keeps its number and its
    first report. What is reported is the metric that the trainer chooses its best epoch by, with
    its sign turned where lower values are better: a study maximises.

    Args:
        trial: The trial.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: object,
    ) -> None:
        """Report, and break off a trial that is not worth going on with.

        Raises:
            optuna.TrialPruned: The pruner has seen enough.
        """
        from optuna import TrialPruned

        name = metric_of(args)
        number = sum(name in entry for entry in state.log_history)
        self.trial.set_user_attr("metric", name.removeprefix("eval_"))
        if number not in self.reported():
            self.trial.report(sign_of(args) * metrics[name], number)
        if state.global_step < state.max_steps and self.trial.should_prune():
            raise TrialPruned(f"validation {number} was below the median")

    def reported(self) -> dict[int, float]:
        """What was reported of this trial so far, before a break as well, by number."""
        study, number = self.trial.study, self.trial.number
        return study.get_trials(deepcopy=False)[number].intermediate_values


def metric_of(args: TrainingArguments) -> str:
    """The trainer's name of the metric that an epoch is chosen by."""
    return f"eval_{args.metric_for_best_model.removeprefix('eval_')}"


def sign_of(args: TrainingArguments) -> int:
    """1 where a higher value is better, else -1."""
    return 1 if args.greater_is_better else -1


Settings = dict[str, object]
"""Values by dotted option."""

FIXED = {
    "output": "every trial has a folder of its own",
    "data": "trials on other data have other validation examples",
    "evaluation": "trials that are measured otherwise cannot be compared",
    "train.validations_per_epoch": "trials are compared validation by validation",
    "update": "a search trains from the beginning",
}
"""Options that all trials must share, and why."""


class Space:
    """What may change in a base run, and between what.

    Args:
        options: By dotted option of a `RunConfig`.
        base: The run that they change.

    Raises:
        ConfigError: An option is unknown, must not change (`FIXED`), or may take a value that the
            base does not take.
    """

    def __init__(self, options: Mapping[str, SearchedOption], base: RunConfig) -> None:
        self.options, self.base = options, base
        for name, option in options.items():
            _check_free(name)
            values = option.ends if option.choices is None else option.choices
            for value in values:
                self.run({name: value}, place=f"space.{name}, value {value!r}")

    def draw(self, trial: Trial) -> Settings:
        """The values of one trial; one that has drawn them already has the same again."""
        return {name: _draw(trial, name, option) for name, option in self.options.items()}

    def read(self, drawn: Mapping[str, object]) -> Settings:
        """The values behind what Optuna has stored of a trial."""
        found: Settings = {}
        for name, value in drawn.items():
            choices = self.options[name].choices
            found[name] = value if choices is None else json.loads(str(value))
        return found

    def run(
        self, settings: Settings, output: Path | None = None, place: str = "trial"
    ) -> RunConfig:
        """The base run with these values and, if it is given, another output folder.

        Raises:
            ConfigError: The values do not fit together.
        """
        tree = self.base.model_dump(mode="json")
        for name, value in settings.items():
            set_option(tree, name, value)
        if output is not None:
            tree["output"] = str(output)
        return RunConfig.of(tree, place)

    def of_base(self) -> dict[str, str | int | float]:
        """The base's own values as Optuna names them, of options whose space holds them."""
        tree = self.base.model_dump(mode="json")
        found: dict[str, str | int | float] = {}
        for name, option in self.options.items():
            if option.choices is not None:
                same = [value for value in option.choices if self.run({name: value}) == self.base]
                if same:
                    found[name] = _label(same[0])
                continue
            value, (low, high) = _at(tree, name), option.ends
            if isinstance(value, int | float) and low <= value <= high:
                found[name] = value
        return found


def _draw(trial: Trial, name: str, option: SearchedOption) -> object:
    if option.choices is not None:  # Optuna stores plain values alone, so it is given their JSON
        labels = [_label(choice) for choice in option.choices]
        return json.loads(trial.suggest_categorical(name, labels))
    low, high = option.ends
    if option.whole:
        return trial.suggest_int(name, low, high, log=option.log)
    return trial.suggest_float(name, low, high, log=option.log)


def _label(choice: object) -> str:
    return json.dumps(choice, ensure_ascii=False, sort_keys=True)


def _at(tree: dict, name: str) -> object:
    value: object = tree
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _check_free(name: str) -> None:
    for fixed, reason in FIXED.items():
        if name == fixed or name.startswith(f"{fixed}."):
            raise ConfigError(
                f"{name} is to be searched",
                where="space",
                expected=f"the same {fixed} for all trials: {reason}",
                fix="remove it from the space, and set it in the base",
            )


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


logger = logging.getLogger(__name__)

HOPELESS = 5
"""Failed trials that end a search in which no other has ended."""

MAY_DIFFER = {"trials", "seconds", "output"}
"""What a search that goes on may change: how long it goes on, and what its folder is called."""


def search(config: SearchConfig, *, say: Callable[[str], object] = logger.info) -> SearchSummary:
    """Try options on validation and write down the best run.

    Trials are drawn by TPE (Bergstra et al. 2011) after ``startup_trials`` random ones; the first
    one has the base's own values where the space holds them. What a trial draws depends on the
    seed, its number and the trials before it alone. No trial reads a test question: `finetune` is
    given a split without any. Started again with the same output, a search goes on, a trial that
    was broken off from its last checkpoint.

    Args:
        config: What to search.
        say: Told of every trial.

    Returns:
        The summary, also written to the output folder beside ``best.yaml``, which `finetune` takes.

    Raises:
        ConfigError: An option cannot be searched, all trials fail, several processes were
            launched, or Optuna is not installed.
        OutputError: The folder holds another search, or one at work, or cannot be written.
        DataError, TemplateError, ...: never from a trial; a failed one is recorded.
    """
    _one_process()
    optuna = require("optuna", extra="search", purpose="llm-influence search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    base = config.base_run()
    work = _Search(config, Space(config.space, base), Path(config.output))
    with _alone(work.folder):
        _start_folder(config.model_copy(update={"base": base.model_dump(mode="json")}))
        study = _open_study(work)
        try:
            while (trial := _next_trial(study, config)) is not None:
                _run_trial(study, trial, work)
                say(_line(study, trial.number))
                _check_hope(study, config, work.folder)
        except KeyboardInterrupt:
            say(f"broken off; the same command goes on with {work.folder}")
            raise
        finally:
            summary = _write_summary(study, work)
    return summary


@dataclass(frozen=True, slots=True)
class _Search:
    """What stays the same through a search."""

    config: SearchConfig
    space: Space
    folder: Path

    def place(self, number: int) -> Path:
        """Folder of a trial."""
        return self.folder / "trials" / f"{number:04d}"


def _one_process() -> None:
    processes = PartialState(cpu=on_cpu()).num_processes
    if processes > 1:
        raise ConfigError(
            f"{processes} processes were launched",
            where="llm-influence search",
            expected="one: trials run one after the other",
            fix="start it without accelerate launch or torchrun",
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against a second search; the system lets go of it when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "search.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                "another search is at work here",
                where=str(folder),
                expected="one search a folder at a time",
                fix="wait for it, or choose another output",
            ) from error
        yield


def _start_folder(config: SearchConfig) -> None:
    folder = Path(config.output)
    path, study, trials = (folder / name for name in ("search.yaml", "study.db", "trials"))
    if trials.exists() and not (path.exists() and study.exists()):
        raise _other(folder, "trials of a search whose search.yaml or study.db is gone")
    if path.exists():
        before = SearchConfig.load(path)
        differing = sorted(
            name
            for name in SearchConfig.model_fields.keys() - MAY_DIFFER
            if getattr(before, name) != getattr(config, name)
        )
        if differing:
            raise _other(folder, f"a search with another {', '.join(differing)}")
    config.save(path)


def _other(folder: Path, found: str) -> OutputError:
    return OutputError(
        f"the folder holds {found}",
        where=str(folder),
        expected=f"a new folder, or a search with other {', '.join(sorted(MAY_DIFFER))} alone",
        fix="choose another output",
    )


def _open_study(work: _Search) -> Study:
    import optuna

    path = (work.folder / "study.db").resolve()
    study = optuna.create_study(
        study_name="search",
        storage=f"sqlite:///{path}",
        direction="maximize",
        pruner=_pruner(work.config.pruner),
        load_if_exists=True,
    )
    own = work.space.of_base()
    if own and not study.get_trials(deepcopy=False):
        study.enqueue_trial(own)
    return study


def _pruner(config: PrunerConfig) -> BasePruner:
    from optuna.pruners import MedianPruner, NopPruner

    if config.kind == "none":
        return NopPruner()
    return MedianPruner(
        n_startup_trials=config.startup_trials,
        n_warmup_steps=config.warmup_validations + 1,  # validations are counted from 1
    )


def _next_trial(study: Study, config: SearchConfig) -> Trial | None:
    """The trial that was broken off, else a new one, else None where the search is at its end."""
    import optuna
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    begun = [trial for trial in trials if trial.state != TrialState.WAITING]
    running = [trial for trial in begun if trial.state == TrialState.RUNNING]
    number = running[0].number if running else len(begun)
    # A sampler anew for each trial, or a search that goes on would repeat its first draws.
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=config.startup_trials, seed=seed)
    if running:  # one process at a time, so it is at work no more
        return optuna.Trial(study, running[0]._trial_id)
    spent = sum(trial.user_attrs.get("seconds", 0.0) for trial in begun)
    if len(begun) >= config.trials or (config.seconds is not None and spent >= config.seconds):
        return None
    return study.ask()


def _run_trial(study: Study, trial: Trial, work: _Search) -> None:
    """Train one trial and tell the study; what fails in it is the trial's own."""
    from optuna import TrialPruned
    from optuna.trial import TrialState

    place, reports = work.place(trial.number), ValidationReports(trial)
    begun, earlier = time.perf_counter(), trial.user_attrs.get("seconds", 0.0)
    state, value = TrialState.COMPLETE, None
    try:
        run = work.space.run(work.space.draw(trial), place, f"trial {trial.number}")
        cache = work.folder / "text_vectors"
        finetune(run, resume=True, measure_test=False, callbacks=[reports], cache=cache)
        value = max(reports.reported().values())
    except TrialPruned:
        state = TrialState.PRUNED
    except Exception as error:
        # Whatever it is (no memory, a loss that is no number, options that do not fit together):
        # it is written down, and the other trials are worth trying.
        logger.exception("trial %d failed", trial.number)
        state = TrialState.FAIL
        trial.set_user_attr("error", f"{type(error).__name__}: {error}")
        write_text(place / "error.txt", traceback.format_exc())
    finally:
        trial.set_user_attr("seconds", earlier + time.perf_counter() - begun)
    study.tell(trial, value, state=state)
    _tidy(place)


def _tidy(place: Path) -> None:
    """Remove what is large and can be had again: checkpoints, and a backbone that is untuned."""
    gc.collect()  # a model hangs in cycles until then
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    written = place / "run.yaml"
    if (
        written.exists()
        and KINDS[RunConfig.load(written).model.adapter.kind].saved_in != "backbone"
    ):
        shutil.rmtree(place / "backbone", ignore_errors=True)


def _line(study: Study, number: int) -> str:
    trial = study.get_trials(deepcopy=False)[number]
    best = max(trial.intermediate_values.values(), default=None)
    value = "" if best is None else f" {trial.user_attrs['metric']} {best:.4f},"
    seconds = trial.user_attrs["seconds"]
    return f"trial {number:04d}: {trial.state.name.lower()},{value} {seconds:.0f} s"


def _check_hope(study: Study, config: SearchConfig, folder: Path) -> None:
    """End a search in which every trial fails."""
    from optuna.trial import TrialState

    ended = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    errors = [t.user_attrs["error"] for t in ended if t.state == TrialState.FAIL]
    if len(errors) == len(ended) >= min(HOPELESS, config.trials):
        raise ConfigError(
            f"all {len(errors)} trials failed; the last one: {errors[-1]}",
            where=str(folder),
            expected="trials that can be trained",
            fix="read trials/*/error.txt, correct the base or the space, choose another output",
        )


def _write_summary(study: Study, work: _Search) -> SearchSummary:
    """Write ``summary.json``, ``summary.txt`` and, if any trial is complete, ``best.yaml``."""
    trials = study.get_trials(deepcopy=False)
    settings = [work.space.read(trial.params) for trial in trials]
    summary = summarise(study, settings)
    summary.write(work.folder)
    if summary.best is not None:
        best = work.space.run(summary.best.settings, work.folder / "best")
        best.save(work.folder / "best.yaml")
    return summary
