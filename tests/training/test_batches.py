"""Windows and their batches."""

from dataclasses import replace

import numpy as np
import pytest

from llm_influence.config.data import SplitConfig
from llm_influence.config.training import EvaluationConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import split_log
from llm_influence.errors import DataError
from llm_influence.evaluation.evaluate import Examples
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training.batches import IGNORE, ExampleCollator, WindowCollator, WindowDataset
from llm_influence.training.trainer import InfluenceTrainer, training_arguments, training_windows
from tests import tiny

STYLES = ("token", "text")
LIMITS = {"max_events": {"max_events": 3}, "max_tokens": {"max_events": 50, "max_tokens": 60}}


def encoder_of(log, style, **rendering):
    kind = "gpt2" if style == "text" else "bert"
    shape = {"style": style, "template": "titles" if style == "text" else "full", **rendering}
    return InfluenceModel.build(tiny.run_config(kind, style, rendering=shape), log).encoder


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("style", STYLES)
def test_every_training_event_is_a_label_and_windows_fit_the_context(style, limit):
    log = split_log(tiny.small_log(users=20), SplitConfig(min_events=4)).train
    limits = {**LIMITS[limit], **({"max_tokens": 16} if limit == "max_tokens" else {})}
    encoder = encoder_of(log, style, **limits)
    windows = list(WindowDataset(log, encoder))
    assert len(windows) > len(log)  # something had to be cut
    inputs = WindowCollator(log, encoder)(windows)
    labelled = np.zeros(log.num_events, dtype=int)
    for row, window in enumerate(windows):
        events = int(log.offsets[window.user]) + np.arange(window.start, window.stop + 1)
        assert inputs["num_events"][row] == window.stop - window.start
        for name, codes in (("labels", log.items), ("behavior_labels", log.behaviors)):
            known = inputs[name][row][inputs[name][row] != IGNORE]
            assert known.tolist() == codes[events].tolist()
        labelled[events] += 1
    assert labelled.min() >= 1
    assert inputs["input_ids"].shape[1] <= encoder.max_tokens
    assert inputs["ends"].shape == inputs["labels"].shape


def test_the_newest_window_of_a_user_is_as_full_as_can_be():
    log = tiny.small_log()
    windows = WindowDataset(log, encoder_of(log, "token", max_events=3))
    newest = {w.user: w for w in reversed(list(windows)) if w.stop == log.lengths[w.user] - 1}
    assert sorted(newest) == list(range(len(log)))
    for window in newest.values():
        assert window.stop - window.start == min(3, window.stop)


def test_an_only_event_is_predicted_from_the_frame():
    table = tiny.events_table(users=2)
    log = BehaviorLog.read(table.slice(3), items=tiny.items_table())  # one event of u0 is left
    encoder = encoder_of(log, "token")
    inputs = WindowCollator(log, encoder)(list(WindowDataset(log, encoder)))
    row = inputs["num_events"].tolist().index(0)
    assert inputs["labels"][row].tolist()[:2] == [int(log.items[0]), IGNORE]
    assert inputs["attention_mask"][row].sum() == 1


@pytest.mark.parametrize("kind", ["leave_one_out", "global_time"])
@pytest.mark.parametrize("style", STYLES)
def test_no_event_of_validation_or_test_is_ever_trained_on(tmp_path, style, kind):
    """Whatever does not train is put at an item and a behaviour that occur nowhere else."""
    config = SplitConfig(kind=kind)
    honest = split_log(BehaviorLog.read(tiny.events_table()), config)
    kept_back = honest.parts() != 0
    table = honest.log.to_table()
    for place, word in ((1, "i29"), (3, "zebra")):
        cells = [
            word if back else cell
            for cell, back in zip(table.column(place).to_pylist(), kept_back, strict=True)
        ]
        cells = [
            "i28" if cell == "i29" and not back else cell
            for cell, back in zip(cells, kept_back, strict=True)
        ]
        table = table.set_column(place, table.column_names[place], [cells])
    items = tiny.items_table().to_pylist()
    items[29]["title"] = "zebra"
    log = BehaviorLog.read(table, items=tiny.pa.Table.from_pylist(items), duplicates="keep")
    split = split_log(log, config)
    assert (split.parts() != 0).tolist() == kept_back.tolist()

    run = tiny.run_config("gpt2", style, rendering={"max_tokens": 64})
    model = InfluenceModel.build(run, split.train)
    arguments = training_arguments(run, tmp_path, 1)
    trainer = InfluenceTrainer(run, model, split, args=arguments)
    item = log.code_names.items.to_pylist().index("i29")
    behavior = log.code_names.behaviors.index("zebra")
    trained = 0
    for inputs in trainer.get_train_dataloader():
        assert item not in inputs["labels"]
        assert behavior not in inputs["behavior_labels"]
        trained += int((inputs["labels"] != IGNORE).sum())
        if style == "text":
            assert "zebra" not in model.encoder.tokenizer.decode(inputs["input_ids"].flatten())
        else:
            said = {model.encoder.token_cache.words[unit] for unit in inputs["input_ids"].flatten()}
            assert not [words for words in said if "zebra" in words]
    assert trained >= split.train.num_events


def test_rows_of_an_evaluation_are_histories_with_their_targets_and_seen_items():
    split = split_log(tiny.small_log())
    encoder = encoder_of(split.train, "token")
    rows = split.test
    examples = Examples(rows, EvaluationConfig())
    inputs = ExampleCollator(examples, encoder)([2, 0])
    assert inputs["labels"].tolist() == rows.target_items[[2, 0]].tolist()
    for place, number in enumerate((2, 0)):
        history = rows.history(number)
        assert inputs["num_events"][place] == len(history)
        seen = inputs["seen"][place]
        assert seen[seen >= 0].tolist() == history.items.tolist()
    examples = Examples(rows, EvaluationConfig(exclude_seen=False))
    assert "seen" not in ExampleCollator(examples, encoder)([0])


def few_labels(heads):
    """A configuration with the other heads' weights, and a log in which few users have labels."""
    weights = {name: {"weight": heads} for name in ("item_head", "behavior_head")}
    feedback = {"weight": 1.0, "kind": "binary", "positive_from": 4.0}
    config = tiny.run_config(
        rendering={"max_events": 3}, model={**weights, "feedback_head": feedback}
    )
    log = split_log(tiny.small_log()).train
    log = replace(log, values=np.where(log.rows_of_users() % 4 == 0, log.values, np.float32("nan")))
    return config, log, InfluenceModel.build(config, log)


def test_where_feedback_alone_is_learned_every_window_has_a_label_and_none_is_lost():
    config, log, model = few_labels(heads=0.0)
    read = training_windows(config, model, log)
    assert 0 < len(read) < len(WindowDataset(log, model.encoder)) / 2
    inputs = WindowCollator(log, model.encoder, feedback=config.model.feedback)(list(read))
    known = ~inputs["feedback_labels"].isnan()
    share = known.sum() / (inputs["labels"] != IGNORE).sum()  # of answers, among what is read
    assert share * read.read == pytest.approx(model.feedback_head.scale.share, rel=0.15)
    assert known.any(dim=1).all()
    labelled = [
        int(log.offsets[w.user]) + w.start + place
        for w, row in zip(read, known, strict=True)
        for place in np.flatnonzero(row.numpy())
    ]
    assert {*labelled} == {*np.flatnonzero(~np.isnan(log.values)).tolist()}


def test_other_heads_learn_from_windows_without_labels_of_feedback():
    config, log, model = few_labels(heads=0.5)
    assert len(training_windows(config, model, log)) == len(WindowDataset(log, model.encoder))


def test_feedback_alone_without_a_label_is_refused():
    config, log, model = few_labels(heads=0.0)
    log = replace(log, values=np.full(log.num_events, np.nan, dtype=np.float32))
    with pytest.raises(DataError, match="no event of training has a feedback label"):
        training_windows(config, model, log)
