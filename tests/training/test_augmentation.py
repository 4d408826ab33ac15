"""Events left out in training: who decides, what is rendered, what is asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from llm_influence.data.splits import split_log
from llm_influence.modeling.backbone import inference
from llm_influence.rendering.batch import EncodedBatch, collate
from llm_influence.training.augmentation import EventDropout, events_before
from llm_influence.training.batches import IGNORE, WindowCollator, WindowDataset
from llm_influence.training.finetune import finetune
from tests import tiny
from tests.training.runs import NO_DROPOUT, config_in, largest_difference, weights
from tests.training.test_resume import broken_after

ALWAYS = EventDropout(0.9, share=1.0, seed=3)


@pytest.fixture(scope="module")
def train():
    return split_log(tiny.small_log(users=20)).train


def removed(dropout, window):
    events = window.stop - window.start
    return ~dropout.kept(events, epoch=window.epoch, user=window.user, start=window.start)


# --- the draws -----------------------------------------------------------------------------


def test_a_share_of_the_windows_loses_events_and_every_size_of_removal_occurs():
    dropout = EventDropout(1.0, share=0.3)
    kept = np.array([dropout.kept(20, epoch=0, user=user, start=0) for user in range(2000)])
    lost = 1 - kept.mean(axis=1)
    assert (lost == 0).mean() == pytest.approx(0.7, abs=0.05)
    counts = np.histogram(lost[lost > 0], bins=4, range=(0, 1.001))[0]
    assert counts.min() > 0.8 * counts.max()  # about as often few as nearly all
    assert EventDropout(0.0, share=1.0).kept(5, epoch=0, user=0, start=0).all()


def test_a_draw_depends_on_seed_epoch_user_and_window_alone():
    def kept(seed=0, epoch=0, user=0, start=0):
        dropout = EventDropout(1.0, share=1.0, seed=seed)
        return dropout.kept(64, epoch=epoch, user=user, start=start).tolist()

    assert kept() == kept()
    for other in ("seed", "epoch", "user", "start"):
        assert kept(**{other: 1}) != kept()


@pytest.mark.parametrize("workers", [0, 2])
def test_draws_do_not_depend_on_batches_order_or_workers_and_change_by_epoch(train, workers):
    encoder = tiny.tiny_model().encoder
    dataset, collator = WindowDataset(train, encoder), WindowCollator(train, encoder, ALWAYS)

    def rows(inputs):
        for row, real in enumerate(inputs["attention_mask"]):
            known = inputs["labels"][row] != IGNORE
            yield inputs["input_ids"][row, real].tolist(), inputs["query_time"][row, known].tolist()

    def pass_over(loader):
        return [row for inputs in loader for row in rows(inputs)]

    options = {"persistent_workers": True} if workers else {}
    small = DataLoader(dataset, 3, collate_fn=collator, num_workers=workers, **options)
    first = pass_over(small)
    order = torch.randperm(len(dataset)).tolist()
    large = DataLoader(dataset, 7, sampler=order, collate_fn=collator)
    assert pass_over(large) == [first[place] for place in order]
    dataset.set_epoch(1)
    second = pass_over(small)
    assert sum(one != other for one, other in zip(first, second, strict=True)) > 10
    dataset.set_epoch(0)
    assert pass_over(small) == first


# --- what is rendered and asked ------------------------------------------------------------


def test_events_are_predicted_behind_the_last_kept_event_before_them():
    kept = np.array([True, True, False, False])
    assert events_before(kept).tolist() == [0, 1, 2, 2, 2]


def test_every_event_is_asked_as_an_explanation_asks_it(model, train):
    """The state of a label is that of its own past with events removed, rendered alone."""
    windows = [replace(w, epoch=2) for w in WindowDataset(train, model.encoder)][:12]
    inputs = WindowCollator(train, model.encoder, ALWAYS)(windows)
    labels, query_time = inputs.pop("labels"), inputs.pop("query_time")
    inputs.pop("behavior_labels")
    with inference(model):
        states = model.states(EncodedBatch(**inputs))
    asked = 0
    for row, window in enumerate(windows):
        past = train.at(window.user).keep(slice(window.start, window.stop + 1))
        kept = ~removed(ALWAYS, window)
        assert labels[row][labels[row] != IGNORE].tolist() == past.items.tolist()
        for place in range(len(past)):
            subset = past.keep(slice(place)).keep(kept[:place])
            alone = collate(model.encoder.encode([subset]))
            with inference(model):
                expected = model.states(alone)[0, alone.last()[0]]
            found = states[row, query_time[row, place]]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            asked += place > 0 and not kept[place - 1]
    assert asked > 10  # events were asked for right behind removed ones


def test_no_label_is_an_input_before_it_is_asked_for(train):
    """In this log no user meets an item twice, so an item names an event."""
    encoder = tiny.tiny_model().encoder
    inputs = WindowCollator(train, encoder, ALWAYS)(list(WindowDataset(train, encoder)))
    first_item = encoder.token_cache.first_item
    later = 0
    for row, labels in enumerate(inputs["labels"]):
        for label, place in zip(labels, inputs["query_time"][row], strict=True):
            if label != IGNORE:
                read = inputs["input_ids"][row]
                assert first_item + label not in read[: place + 1]
                later += int(first_item + label in read)
    assert later > 20  # most labels are inputs further on


def test_a_history_that_no_longer_fits_is_asked_from_what_was_read(train):
    """Removal makes gaps longer, and in some languages their words too."""
    encoder = tiny.tiny_model("gpt2", "text").encoder
    windows = list(WindowDataset(train, encoder))
    encoder.max_tokens = max(
        np.diff(encoder.encode([train.at(w.user, w.stop) for w in windows]).offsets) // 2
    )
    inputs = WindowCollator(train, encoder, EventDropout(0.3, share=1.0))(windows)
    lost = 0
    for row, window in enumerate(windows):
        kept = int((~removed(EventDropout(0.3, share=1.0), window)).sum())
        known = inputs["labels"][row] != IGNORE
        read = int(inputs["num_events"][row])
        assert inputs["query_time"][row, known][-1] == inputs["ends"][row, read]
        lost += kept - read
    assert lost > 0


# --- whole runs ----------------------------------------------------------------------------

TRAIN = {"epochs": 2, "learning_rate": 1e-2, "event_dropout": 0.8, "event_dropout_share": 1.0}


def test_a_run_draws_anew_in_every_epoch_and_goes_on_where_it_was(tmp_path, monkeypatch):
    seen, draw = [], EventDropout.kept

    def noted(self, events, **window):
        seen.append(window["epoch"])
        return draw(self, events, **window)

    monkeypatch.setattr(EventDropout, "kept", noted)
    for name in ("unbroken", "broken", "plain"):
        (tmp_path / name).mkdir()
    unbroken = finetune(config_in(tmp_path / "unbroken", train=TRAIN, model=NO_DROPOUT))
    windows = len(seen) // 2
    assert seen == [0] * windows + [1] * windows
    broken = config_in(tmp_path / "broken", train=TRAIN, model=NO_DROPOUT)
    broken_after(1, broken, monkeypatch)
    seen.clear()
    resumed = finetune(broken, resume=True)
    assert set(seen) == {1}
    assert largest_difference(weights(resumed.folder), weights(unbroken.folder)) < 1e-6
    plain = config_in(tmp_path / "plain", train={**TRAIN, "event_dropout": 0.0}, model=NO_DROPOUT)
    assert largest_difference(weights(finetune(plain).folder), weights(unbroken.folder)) > 1e-3
