"""A search: trials one after the other, kept so that a broken one goes on where it was.

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
import logging
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from accelerate import PartialState

from llm_influence.config import PrunerConfig, RunConfig, SearchConfig
from llm_influence.errors import ConfigError, OutputError
from llm_influence.extras import require
from llm_influence.files import write_text
from llm_influence.modeling.adapters import KINDS
from llm_influence.modeling.devices import on_cpu
from llm_influence.training.finetune import finetune
from llm_influence.training.search.reports import ValidationReports
from llm_influence.training.search.space import Space
from llm_influence.training.search.summary import SearchSummary, summarise

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner

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
