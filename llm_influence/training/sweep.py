"""Search for good options on the validation split, with Optuna. A search can be resumed.

<output>/search.yaml     the search, with its base run written out
<output>/study.db        Optuna's study (SQLite); `optuna-dashboard` reads it
<output>/trials/0000/    one trial: a run folder without test metrics, checkpoints and untuned
                         backbone; `error.txt` if it failed
<output>/text_vectors/   text vectors of the items, shared by all trials
<output>/summary.json, summary.txt, best.yaml
"""

from __future__ import annotations

import fcntl
import functools
import gc
import json
import logging
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

from llm_influence.config.document import set_option
from llm_influence.config.run import RunConfig, SearchConfig, SearchedOption
from llm_influence.errors import ConfigError, OutputError
from llm_influence.evaluation.evaluate import Record, as_text
from llm_influence.modeling.adapters import KINDS
from llm_influence.modeling.backbone import on_cpu
from llm_influence.training.finetune import finetune
from llm_influence.training.trainer import ValidationReports
from llm_influence.utils import require, write_text

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)

FIXED = {
    "output": "every trial has its own folder",
    "data": "trials on other data have other validation examples",
    "evaluation": "trials with another evaluation cannot be compared",
    "train.validations_per_epoch": "trials are compared validation by validation",
    "update": "a search trains from the beginning",
}
"""Options that cannot be searched, and why."""

FEW, SHOWN, HOPELESS = 10, 10, 5
"""Complete trials that importances need; trials in the table; failures that end a search."""


class Space:
    """The options that trials change, and the values they may take.

    Args:
        options: Ranges and choices by dotted option of a `RunConfig`.
        base: The run that trials change.

    Raises:
        ConfigError: An option is unknown or in `FIXED`, or the base refuses one of its values.
    """

    def __init__(self, options: Mapping[str, SearchedOption], base: RunConfig) -> None:
        self.options, self.base = options, base
        for name, option in options.items():
            for fixed, reason in FIXED.items():
                if f"{name}.".startswith(f"{fixed}."):
                    raise ConfigError(
                        f"{name} cannot be searched",
                        where="space",
                        expected=f"the same {fixed} for all trials: {reason}",
                        fix="remove it from the space, and set it in the base",
                    )
            for value in option.choices or option.ends:
                self.run({name: value}, place=f"space.{name}, value {value!r}")

    def draw(self, trial: Trial) -> dict[str, object]:
        """The values of a trial. A resumed trial keeps its values."""
        drawn: dict[str, object] = {}
        for name, option in self.options.items():
            if option.choices is None:
                suggest = trial.suggest_int if option.whole else trial.suggest_float
                drawn[name] = suggest(name, *option.ends, log=option.log)
            else:  # Optuna stores plain values only, so it gets JSON
                labels = [_json(choice) for choice in option.choices]
                drawn[name] = json.loads(trial.suggest_categorical(name, labels))
        trial.set_user_attr("settings", drawn)
        return drawn

    def run(self, settings: Mapping, output: Path | None = None, place: str = "") -> RunConfig:
        """The base run with these values and another output; errors name the ``place``."""
        tree = self.base.model_dump(mode="json")
        for name, value in settings.items():
            set_option(tree, name, value)
        if output is not None:
            tree["output"] = str(output)
        return RunConfig.of(tree, place)

    def of_base(self) -> dict[str, object]:
        """The base's own values, as Optuna stores them, of the options whose space has them."""
        values: dict[str, object] = {}
        for name, option in self.options.items():
            for value in option.choices or ():
                if self.run({name: value}) == self.base:
                    values.setdefault(name, _json(value))
            value = self.base.model_dump(mode="json")
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if option.choices is None and isinstance(value, int | float):
                values |= {name: value} if option.ends[0] <= value <= option.ends[1] else {}
        return values


_json = functools.partial(json.dumps, ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial.

    Attributes:
        number: From 0; its folder is ``trials/0000``.
        state: complete, pruned (ended early), failed, or running (interrupted; can be resumed).
        value: Its best validation metric; None without a validation.
        validations: Number of validations.
        seconds: Wall-clock seconds, validations included.
        settings: Values by dotted option.
        error: The error of a failed trial.
    """

    number: int
    state: str
    value: float | None
    validations: int
    seconds: float
    settings: dict[str, object]
    error: str | None

    @classmethod
    def of(cls, trial: FrozenTrial) -> TrialRecord:
        """The record of a trial of Optuna."""
        return cls(
            number=trial.number,
            state=trial.state.name.lower().replace("fail", "failed"),
            value=max(trial.intermediate_values.values(), default=None),
            validations=len(trial.intermediate_values),
            seconds=trial.user_attrs.get("seconds", 0.0),
            settings=trial.user_attrs.get("settings", {}),
            error=trial.user_attrs.get("error"),
        )

    def line(self) -> str:
        """The trial in one line."""
        value = "" if self.value is None else f" best validation {self.value:.4f},"
        return f"trial {self.number:04d}: {self.state},{value} {self.seconds:.0f} s"


@dataclass(frozen=True, slots=True)
class SearchSummary:
    """The trials of a search and the importance of each option.

    Attributes:
        metric: The maximised validation metric; "" before any validation.
        trials: All trials in their order.
        best: The best complete trial.
        importances: Share of the metric's variation by option (PED-ANOVA, Watanabe et al. 2023,
            arXiv:2304.10255), the largest first; None without them, and ``note`` gives the reason.
        note: Why there are no importances, or how to read them.
    """

    metric: str
    trials: tuple[TrialRecord, ...]
    best: TrialRecord | None
    importances: dict[str, float] | None
    note: str

    @classmethod
    def of(cls, study: Study) -> SearchSummary:
        """The summary of a study."""
        stored = study.get_trials(deepcopy=False)
        trials = tuple(TrialRecord.of(trial) for trial in stored)
        complete = [trial for trial in trials if trial.state == "complete"]
        return cls(
            max((trial.user_attrs.get("metric", "") for trial in stored), default=""),
            trials,
            TrialRecord.of(study.best_trial) if complete else None,
            *_importances(study, complete),
        )

    def to_text(self) -> str:
        """Counts, the best trials, the importances and the errors as plain text."""
        states = Counter(trial.state for trial in self.trials)
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        lines = [f"{len(self.trials)} trials: {counts}", f"metric: {self.metric} on validation", ""]
        lines += [_table(self.trials), "", f"importances: {self.note}"]
        lines += [f"  {share:6.1%}  {name}" for name, share in (self.importances or {}).items()]
        lines += [f"failed {t.number:04d}: {t.error}" for t in self.trials if t.state == "failed"]
        return "\n".join(lines)


def _importances(
    study: Study, complete: Sequence[TrialRecord]
) -> tuple[dict[str, float] | None, str]:
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if (count := len(complete)) < FEW:
        return None, f"too few trials ({count} complete, {FEW} are needed)"
    if len({trial.value for trial in complete}) == 1:
        return None, "none: all complete trials have the same value"
    shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return shares, f"of {count} complete trials (PED-ANOVA); pruned trials are left out"


def _table(trials: Sequence[TrialRecord]) -> str:
    """The best trials, one a line, with one column an option."""
    ranked = [trial for trial in trials if trial.value is not None]
    ranked.sort(key=lambda trial: (trial.state != "complete", -(trial.value or 0.0)))
    rows: list[Record] = []
    for t in ranked[:SHOWN]:
        row: Record = {"trial": f"{t.number:04d}", "state": t.state, "value": t.value or 0.0}
        shown = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in t.settings.items()}
        rows.append({**row, "seconds": f"{t.seconds:.0f}", **shown})
    return as_text(rows) if rows else "no trial reached a validation"


def search(config: SearchConfig, *, say: Callable[[str], object] = logger.info) -> SearchSummary:
    """Search for good options on the validation split and write the best run.

    TPE (Bergstra et al. 2011) draws the trials after ``startup_trials`` random ones. The first has
    the base's own values where the space holds them. Trials get a split without test examples.
    The same call resumes a search: an interrupted trial continues from its last checkpoint under
    its own number. So no trial is lost or repeated, and a resumed search draws the same trials.

    Args:
        config: The search.
        say: Gets one line after every trial.

    Returns:
        The summary. ``best.yaml`` in the output folder is a configuration for `finetune`.

    Raises:
        ConfigError: An option cannot be searched, all trials fail, several processes were
            launched, or Optuna is not installed. The error of a single trial is only recorded.
        OutputError: The folder holds another search, or one that runs, or cannot be written.
    """
    if (processes := PartialState(cpu=on_cpu()).num_processes) > 1:
        raise ConfigError(
            f"{processes} processes were launched",
            where="llm-influence search",
            expected="one process: trials run one after the other",
            fix="start it without accelerate launch or torchrun",
        )
    optuna = require("optuna", extra="search", purpose="llm-influence search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    base, folder = config.base_run(), Path(config.output)
    space = Space(config.space, base)
    with _own(folder, config.model_copy(update={"base": base.model_dump(mode="json")})):
        study = _open_study(config, space, folder)
        try:
            while (trial := _next_trial(study, config)) is not None:
                _run_trial(study, trial, space, folder)
                ended = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
                say(TrialRecord.of(ended[-1]).line())
                _check_hope(ended, config)
        except KeyboardInterrupt:
            say(f"interrupted; run the same command again to continue {folder}")
            raise
        finally:
            summary = SearchSummary.of(study)
            tree = asdict(summary) | {"states": Counter(trial.state for trial in summary.trials)}
            write_text(folder / "summary.json", _json(tree, indent=2, sort_keys=False) + "\n")
            write_text(folder / "summary.txt", summary.to_text() + "\n")
            if summary.best is not None:
                best = space.run(summary.best.settings, folder / "best")
                best.save(folder / "best.yaml")
    return summary


@contextmanager
def _own(folder: Path, config: SearchConfig) -> Iterator[None]:
    """Write ``search.yaml``, and keep other searches out of the folder."""
    path, held, fix = folder / "search.yaml", "", "choose another output"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "search.lock").open("w") as lock:  # the lock ends with the process
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held, fix = "a search that is running", "wait for it, or choose another output"
        if not held and path.exists():
            before = SearchConfig.load(path)
            names = sorted(SearchConfig.model_fields.keys() - {"output", "seconds", "trials"})
            differing = [name for name in names if getattr(before, name) != getattr(config, name)]
            held = f"a search with another {', '.join(differing)}" if differing else ""
        whole = path.exists() and (folder / "study.db").exists()
        if not held and (folder / "trials").exists() and not whole:
            held = "trials of a search without search.yaml or study.db"
        if held:
            expected = (
                "an empty folder, or the same search; only output, seconds and trials may differ"
            )
            raise OutputError(
                f"the folder holds {held}", where=str(folder), expected=expected, fix=fix
            )
        config.save(path)
        yield


def _open_study(config: SearchConfig, space: Space, folder: Path) -> Study:
    import optuna
    from optuna.pruners import MedianPruner, NopPruner

    options = config.pruner
    warmup = options.warmup_validations + 1  # validations are counted from 1
    median = MedianPruner(n_startup_trials=options.startup_trials, n_warmup_steps=warmup)
    study = optuna.create_study(
        study_name="search",
        storage=f"sqlite:///{(folder / 'study.db').resolve()}",
        direction="maximize",
        pruner=NopPruner() if options.kind == "none" else median,
        load_if_exists=True,
    )
    if own := space.of_base():
        study.enqueue_trial(own, skip_if_exists=True)
    return study


def _next_trial(study: Study, config: SearchConfig) -> Trial | None:
    """The interrupted trial, else a new one, else None at the end of the search."""
    import optuna
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    begun = [trial for trial in trials if trial.state != TrialState.WAITING]
    running = [trial for trial in begun if trial.state == TrialState.RUNNING]
    number = running[0].number if running else len(begun)
    # One sampler a trial: with one a process, a resumed search would repeat its first draws.
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=config.startup_trials, seed=seed)
    if running:  # the lock admits one process, so nothing else runs this trial
        return optuna.Trial(study, running[0]._trial_id)
    spent = sum(trial.user_attrs.get("seconds", 0.0) for trial in begun)
    if len(begun) >= config.trials or (config.seconds is not None and spent >= config.seconds):
        return None
    return study.ask()


def _run_trial(study: Study, trial: Trial, space: Space, folder: Path) -> None:
    """Train one trial and store its result, or its error."""
    from optuna import TrialPruned
    from optuna.trial import TrialState

    place, reports = folder / "trials" / f"{trial.number:04d}", ValidationReports(trial)
    begun = time.perf_counter() - trial.user_attrs.get("seconds", 0.0)
    state, value = TrialState.COMPLETE, None
    try:
        run = space.run(space.draw(trial), place, f"trial {trial.number}")
        cache = folder / "text_vectors"
        finetune(run, resume=True, measure_test=False, callbacks=[reports], cache=cache)
        value = max(reports.reported().values())
    except TrialPruned:
        state = TrialState.PRUNED
    except Exception as error:  # of any kind: no memory, a loss of NaN, values that do not fit
        logger.exception("trial %d failed", trial.number)
        state = TrialState.FAIL
        trial.set_user_attr("error", f"{type(error).__name__}: {error}")
        write_text(place / "error.txt", traceback.format_exc())
    finally:
        trial.set_user_attr("seconds", time.perf_counter() - begun)
    study.tell(trial, value, state=state)
    _tidy(place)


def _tidy(place: Path) -> None:
    """Remove large files that can be made again: checkpoints, and an untuned backbone."""
    gc.collect()  # reference cycles hold the model until then
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    path = place / "run.yaml"
    if path.exists() and KINDS[RunConfig.load(path).model.adapter.kind].saved_in != "backbone":
        shutil.rmtree(place / "backbone", ignore_errors=True)


def _check_hope(ended: Sequence[FrozenTrial], config: SearchConfig) -> None:
    """End a search in which every trial fails."""
    errors = [trial.user_attrs.get("error") for trial in ended]
    if all(errors) and len(errors) >= min(HOPELESS, config.trials):
        raise ConfigError(
            f"all {len(errors)} trials failed; the last one: {errors[-1]}",
            where=config.output,
            expected="trials that can be trained",
            fix="read trials/*/error.txt, correct the base or the space, choose another output",
        )
