"""Searches of tiny runs: what they try, what they leave, how they go on."""

import fcntl
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import TrainerCallback, TrainerState

from llm_influence.config.run import RunConfig, SearchConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ConfigError, OutputError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training import finetune as training
from llm_influence.training import sweep as module
from llm_influence.training.finetune import finetune
from llm_influence.training.sweep import Space, search
from tests.training.runs import config_in, interrupted, walk_events

SPACE = {
    "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "train.batch_size": {"choices": [4, 8]},
}


def quiet(_):
    pass


def searched(folder, *, space=None, epochs=1, events=None, **options):
    folder.mkdir(exist_ok=True)
    base = config_in(folder, events, train={"epochs": epochs})
    tree = {
        "base": base.model_dump(mode="json"),
        "output": str(folder / "search"),
        "space": space or SPACE,
        "trials": 3,
        "startup_trials": 2,
        **options,
    }
    return SearchConfig.model_validate(tree)


def facts(summary):
    return [(trial.state, trial.value, trial.settings) for trial in summary.trials]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished search, which could not have read a test event."""
    config = searched(tmp_path_factory.mktemp("search") / "a", epochs=2)
    calls, at = [], BehaviorLog.at

    def noting(self, index, stop=None):
        calls.append((self.user_ids[index].as_py(), stop))
        return at(self, index, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BehaviorLog, "at", noting)
        return config, search(config, say=quiet), calls


def test_no_trial_reads_a_history_that_a_test_question_has(done):
    """A test question's history is everything before the user's last event."""
    _, _, calls = done
    lengths = {f"u{user}": 4 + user % 8 for user in range(12)}
    assert calls
    assert all(stop is not None and stop < lengths[user] - 1 for user, stop in calls)


def test_the_first_trial_is_the_base_and_the_others_are_of_the_space(done):
    config, summary, _ = done
    first, *others = summary.trials
    train = config.base_run().train
    assert first.settings == {
        "train.learning_rate": train.learning_rate,
        "train.batch_size": train.batch_size,
    }
    assert all(1e-4 <= trial.settings["train.learning_rate"] <= 1e-2 for trial in others)
    assert len({trial.settings["train.learning_rate"] for trial in summary.trials}) == 3


def test_the_best_run_is_written_as_a_run_that_finetune_repeats(done):
    config, summary, _ = done
    folder = config.output
    best = RunConfig.load(f"{folder}/best.yaml")
    assert summary.best.value == max(trial.value for trial in summary.trials)
    assert best.train.learning_rate == summary.best.settings["train.learning_rate"]
    result = finetune(best)
    assert result.validation["ndcg@10"] == pytest.approx(summary.best.value, abs=1e-6)
    assert result.test is not None


def test_a_trials_folder_is_a_run_without_a_test_and_all_share_the_text_vectors(done):
    config, summary, _ = done
    folder = Path(config.output)
    for trial in summary.trials:
        place = folder / "trials" / f"{trial.number:04d}"
        written = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
        assert written["test"] is None
        assert written["validation"]["items"]["ndcg@10"] == pytest.approx(trial.value, abs=1e-6)
        assert not (place / "checkpoints").exists()
        assert not (place / "text_vectors").exists()
        InfluenceModel.from_pretrained(place)
    assert len(list((folder / "text_vectors").iterdir())) == 1


def test_few_trials_have_no_importances_and_a_note(done):
    config, summary, _ = done
    folder = Path(config.output)
    written = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert written["importances"] is None
    assert "too few trials" in written["note"]
    assert written["metric"] == "ndcg@10"
    text = (folder / "summary.txt").read_text(encoding="utf-8")
    assert f"{summary.best.value:.4f}" in text
    assert "too few trials" in text


class SwitchOff(TrainerCallback):
    """Breaks off whatever trains at its n-th epoch, counted over all trials."""

    def __init__(self, left):
        self.left = left

    def on_epoch_begin(self, *_, **__):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_search_interrupted_in_a_trial_resumes_to_the_trials_of_an_unbroken_one(
    tmp_path, monkeypatch, done
):
    config, switch = searched(tmp_path / "broken", epochs=2), SwitchOff(4)
    with interrupted(training, switch, error=KeyboardInterrupt):
        search(config, say=quiet)
    folder = Path(config.output)
    states = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["states"]
    assert states == {"complete": 1, "running": 1}
    checkpoints = list((folder / "trials" / "0001" / "checkpoints").iterdir())
    assert len(checkpoints) == 1  # the second epoch had begun
    begun = []
    monkeypatch.setattr(
        module, "finetune", lambda run, **o: (begun.append(run), finetune(run, **o))
    )
    summary = search(config, say=quiet)
    assert [Path(run.output).name for run in begun] == ["0001", "0002"]
    assert facts(summary) == facts(done[1])


def test_a_finished_search_has_no_more_trials(done, monkeypatch):
    config, summary, _ = done
    calls = []
    monkeypatch.setattr(module, "finetune", lambda run, **_: calls.append(run))
    assert facts(search(config, say=quiet)) == facts(summary)
    late = config.model_copy(update={"trials": 9, "seconds": 1e-3})
    assert facts(search(late, say=quiet)) == facts(summary)
    assert calls == []


def test_another_search_in_the_same_folder_is_refused(done):
    config, _, _ = done
    with pytest.raises(OutputError, match=r"a search with another seed.*choose another output"):
        search(config.model_copy(update={"seed": 1}), say=quiet)
    with (Path(config.output) / "search.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="a search that is running"):
            search(config, say=quiet)


def pretend(monkeypatch, curve):
    """Trials that train nothing: ``curve`` gives the validations of a run, or an error."""

    def run(config, *, callbacks, **_):
        module.write_text(Path(config.output) / "run.yaml", "{}")
        (reports,) = callbacks
        args = training.training_arguments(config, Path(config.output), 1)
        values, state = curve(config), TrainerState()
        for place, value in enumerate(values):
            metrics = {"eval_ndcg@10": value}
            state.log_history.append(metrics)
            state.global_step, state.max_steps = place + 1, len(values)
            reports.on_evaluate(args, state, None, metrics=metrics)

    monkeypatch.setattr(module, "finetune", run)
    monkeypatch.setattr(module, "_tidy", lambda _: None)  # there is nothing to remove


def test_what_is_below_the_median_ends_early_and_never_at_the_first_validation(
    tmp_path, monkeypatch
):
    """Three trials of one curve, then a worse one: it is compared at its second validation."""
    count = iter(range(4))
    pretend(monkeypatch, lambda _: [0.1 if next(count) == 3 else 0.5] * 4)
    pruner = {"startup_trials": 3, "warmup_validations": 1}
    config = searched(tmp_path / "a", trials=4, pruner=pruner)
    trials = search(config, say=quiet).trials
    assert [trial.state for trial in trials] == ["complete"] * 3 + ["pruned"]
    assert [trial.validations for trial in trials] == [4] * 3 + [2]


def test_importances_find_the_option_that_matters(tmp_path, monkeypatch):
    def curve(run):
        return [1 / (1 + abs(np.log10(run.train.learning_rate) + 3))]

    pretend(monkeypatch, curve)
    config = searched(tmp_path / "a", trials=12, pruner={"kind": "none"})
    summary = search(config, say=quiet)
    assert next(iter(summary.importances)) == "train.learning_rate"
    assert sum(summary.importances.values()) == pytest.approx(1)
    assert "train.learning_rate" in summary.to_text().partition("importances")[2]


def test_a_failed_trial_is_written_down_and_the_others_go_on(tmp_path, monkeypatch):
    def curve(run):
        if run.train.batch_size == 8:
            raise MemoryError("no room")
        return [0.5]

    pretend(monkeypatch, curve)
    config = searched(tmp_path / "a", trials=5)
    summary = search(config, say=quiet)
    failed = [trial for trial in summary.trials if trial.state == "failed"]
    assert 0 < len(failed) < 5
    assert all(trial.error == "MemoryError: no room" for trial in failed)
    trace = Path(config.output) / "trials" / f"{failed[0].number:04d}" / "error.txt"
    assert "no room" in trace.read_text(encoding="utf-8")
    assert summary.best.settings["train.batch_size"] == 4
    assert "MemoryError: no room" in summary.to_text()


def test_a_search_in_which_all_trials_fail_ends_with_the_reason(tmp_path):
    config = searched(tmp_path / "a", trials=2)
    base = config.base | {"data": {"source": "gone.parquet"}}
    with pytest.raises(ConfigError, match=r"all 2 trials failed.*gone\.parquet"):
        search(config.model_copy(update={"base": base}), say=quiet)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.learning_rat": {"choices": [1]}}, r"unknown option.*did you mean 'learning_rate'"),
        ({"train.epochs": {"low": 0, "high": 2}}, r"space.train.epochs, value 0.*greater than 0"),
        ({"evaluation.cutoff": {"choices": [5, 10]}}, r"evaluation.cutoff cannot be searched"),
        ({"data.source": {"choices": ["a"]}}, r"other validation examples"),
    ],
)
def test_a_space_that_makes_no_runs_is_refused_before_any_trial(tmp_path, space, message):
    with pytest.raises(ConfigError, match=rf"(?s){message}"):
        search(searched(tmp_path / "a", space=space), say=quiet)
    assert not (tmp_path / "a" / "search").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("{low: 2, high: 1}", r"low \(2\) below high \(1\)"),
        ("{low: 0.0, high: 1.0, log: true}", r"above 0 for log"),
        ("{low: 1}", r"low and high, or choices"),
        ("{low: 1, high: 2, choices: [1]}", r"not both"),
        ("{lowest: 1, high: 2}", r"unknown option.*did you mean 'low'"),
    ],
)
def test_a_mistake_in_a_search_file_is_named(tmp_path, option, message):
    path = tmp_path / "space.yaml"
    path.write_text(f"base: run.yaml\nspace: {{train.epochs: {option}}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"(?s)space\.yaml.*{message}"):
        SearchConfig.load(path)


def test_a_choice_may_be_a_section_and_a_whole_range_gives_whole_numbers(tmp_path, monkeypatch):
    runs = []
    pretend(monkeypatch, lambda run: [runs.append(run) or 0.5])
    adapters = [{"kind": "lora", "rank": 2}, {"kind": "frozen"}, {"kind": "ia3"}]
    space = {"model.adapter": {"choices": adapters}, "rendering.max_events": {"low": 4, "high": 9}}
    summary = search(searched(tmp_path / "a", space=space, trials=6), say=quiet)
    assert {run.model.adapter.kind for run in runs} == {"lora", "frozen", "ia3"}
    assert {type(run.rendering.max_events) for run in runs} == {int}
    assert [trial.settings["rendering.max_events"] for trial in summary.trials] == [
        run.rendering.max_events for run in runs
    ]
    assert summary.trials[0].settings["rendering.max_events"] == 8  # the base's own


def test_a_run_without_test_writes_null(tmp_path):
    config = config_in(tmp_path, walk_events(users=8))
    result = finetune(config, measure_test=False)
    assert result.test is None
    assert json.loads((result.folder / "metrics.json").read_text(encoding="utf-8"))["test"] is None


@pytest.mark.parametrize("path", sorted(Path("configs/search").glob("*.yaml")), ids=str)
def test_every_shipped_search_makes_runs(path):
    config = SearchConfig.load(path, ["--trials", "3"])
    assert config.trials == 3
    Space(config.space, config.base_run())
