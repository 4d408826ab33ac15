"""Random draws of training: removed events, views of windows, negatives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from llm_influence.config.training import AugmentationConfig, TrainConfig
from llm_influence.data.splits import split_log
from llm_influence.errors import ConfigError
from llm_influence.modeling.backbone import inference
from llm_influence.rendering.encoder import EncodedBatch, collate
from llm_influence.training import finetune as module
from llm_influence.training.augmentation import (
    EventDropout,
    Negatives,
    Views,
    events_before,
    half_popular,
)
from llm_influence.training.batches import IGNORE, WindowCollator, WindowDataset
from llm_influence.training.finetune import finetune
from tests import tiny
from tests.training.runs import NO_DROPOUT, config_in, interrupted, largest_difference, weights

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


# --- what is rendered and predicted ------------------------------------------------------------


def test_events_are_predicted_behind_the_last_kept_event_before_them():
    kept = np.array([True, True, False, False])
    assert events_before(kept).tolist() == [0, 1, 2, 2, 2]


def test_every_label_is_predicted_as_an_explanation_predicts_it(model, train):
    """The state of a label is that of its own past with events removed, rendered alone."""
    windows = [replace(w, epoch=2) for w in WindowDataset(train, model.encoder)][:12]
    inputs = WindowCollator(train, model.encoder, ALWAYS)(windows)
    labels, query_time = inputs.pop("labels"), inputs.pop("query_time")
    inputs.pop("behavior_labels")
    with inference(model):
        states = model.states(EncodedBatch(**inputs))
    calls = 0
    for row, window in enumerate(windows):
        past = train.at(window.user).keep(slice(window.start, window.stop + 1))
        kept = ~removed(ALWAYS, window)
        assert labels[row][labels[row] != IGNORE].tolist() == past.items.tolist()
        for place in range(len(past)):
            subset = past.keep(slice(place)).keep(kept[:place])
            alone = collate(model.encoder.encode([subset]))
            with inference(model):
                expected = model.states(alone)[0, alone.last()[0]]
            result = states[row, query_time[row, place]]
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
            calls += place > 0 and not kept[place - 1]
    assert calls > 10  # events right behind removed ones


def test_no_label_is_an_input_before_its_prediction(train):
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


def test_a_history_that_no_longer_fits_is_predicted_from_what_was_read(train):
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


@pytest.mark.slow
def test_a_run_draws_anew_in_every_epoch_and_resumes(tmp_path, monkeypatch):
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
    with interrupted(module):
        finetune(broken)
    seen.clear()
    resumed = finetune(broken, resume=True)
    assert set(seen) == {1}
    assert largest_difference(weights(resumed.folder), weights(unbroken.folder)) < 1e-6
    plain = config_in(tmp_path / "plain", train={**TRAIN, "event_dropout": 0.0}, model=NO_DROPOUT)
    assert largest_difference(weights(finetune(plain).folder), weights(unbroken.folder)) > 1e-3


# --- views ---------------------------------------------------------------------------------------


WINDOW = {"epoch": 2, "user": 3, "start": 0}
OTHER_WORDS = 'name: other\nhistory: "so:"\nevent: "then {value} for {text} by {behavior} {gap}"\n'


def views(seed=0, share=1.0, **kinds):
    return Views(AugmentationConfig(share=share, **kinds), seed=seed)


@pytest.fixture(scope="module", params=[("bert", "token"), ("gpt2", "text")])
def model(request):
    return tiny.tiny_model(*request.param)


# --- the draws -----------------------------------------------------------------------------


def test_a_crop_is_a_stretch_and_what_comes_after_it_is_its_last_label():
    result = [views(crop=0.4).trained(10, **{**WINDOW, "user": user}) for user in range(200)]
    for view in result:
        assert view.shown.tolist() == list(range(view.shown[0], view.shown[0] + 6))
        assert view.after == view.shown[-1] + 1
    assert {int(view.shown[0]) for view in result} == {0, 1, 2, 3, 4}


def test_a_mask_hides_a_share_of_the_events_and_never_all():
    view = views(mask=0.3).trained(10, **WINDOW)
    assert view.shown.tolist() == list(range(10))
    assert view.hidden.sum() == 3
    assert not views(mask=0.9).trained(1, **WINDOW).hidden.any()
    assert len(views(mask=0.9).trained(0, **WINDOW).hidden) == 0


def test_reordered_events_change_places_within_one_stretch_and_time_does_not_run_backwards(train):
    history = train.at(int(np.argmax(train.lengths)))
    events = len(history) - 1
    view = views(reorder=0.5).trained(events, **WINDOW)
    moved = np.flatnonzero(view.shown != np.arange(events))
    assert sorted(view.shown) == list(range(events))
    assert 0 < len(moved) <= moved[-1] - moved[0] + 1 <= round(0.5 * events)
    shown = view.of(history)
    assert shown.items.tolist() == history.items[[*view.shown, events]].tolist()
    assert shown.timestamps.tolist() == history.timestamps.tolist()


def test_a_draw_depends_on_seed_epoch_user_window_and_which_view_it_is():
    def drawn(seed=0, **window):
        return views(seed, mask=0.5).trained(64, **{**WINDOW, **window}).hidden.tolist()

    assert drawn() == drawn()
    for other in ("seed", "epoch", "user", "start"):
        assert drawn(**{other: 7}) != drawn()
    first, second = views(mask=0.5).pair(64, **WINDOW)
    assert len({tuple(first.hidden), tuple(second.hidden), tuple(drawn())}) == 3


def test_a_share_of_the_windows_is_changed_and_each_kind_as_often():
    drawn = views(share=0.6, crop=0.5, reorder=1.0)
    result = [drawn.trained(8, epoch=0, user=user, start=0) for user in range(3000)]
    cut = np.mean([len(view.shown) < 8 for view in result])
    shuffled = np.mean([len(v.shown) == 8 and (np.diff(v.shown) != 1).any() for v in result])
    assert cut == pytest.approx(0.3, abs=0.03)
    assert shuffled == pytest.approx(0.3, abs=0.03)


def test_nothing_is_changed_unless_a_kind_is_on(model, train):
    windows = list(WindowDataset(train, model.encoder))
    usual = WindowCollator(train, model.encoder)(windows)
    same = WindowCollator(train, model.encoder, None, views())(windows)
    assert usual.keys() == same.keys()
    assert all(torch.equal(usual[name], same[name]) for name in usual)


# --- what is rendered and predicted ------------------------------------------------------------


def test_a_hidden_event_predicts_nothing():
    kept, hidden = np.array([1, 0, 1, 1, 1], bool), np.array([0, 0, 1, 0, 1], bool)
    assert events_before(kept, hidden).tolist() == [0, 1, 1, 1, 3, 3]


@pytest.mark.parametrize("kind", [{"crop": 0.5}, {"mask": 0.5}, {"reorder": 1.0}])
@pytest.mark.parametrize("dropout", [None, EventDropout(0.9, share=1.0)])
def test_labels_are_the_shown_events_each_predicted_from_those_before_it(
    model, train, kind, dropout
):
    """Every label's state is that of the view's beginning, rendered and hidden alone."""
    windows = [replace(w, epoch=2) for w in WindowDataset(train, model.encoder)][:6]
    inputs = WindowCollator(train, model.encoder, dropout, views(**kind))(windows)
    labels, query_time = inputs.pop("labels"), inputs.pop("query_time")
    behaviors = inputs.pop("behavior_labels")
    with inference(model):
        states = model.states(EncodedBatch(**inputs))
    changed = 0
    for row, window in enumerate(windows):
        history = train.at(window.user).keep(slice(window.start, window.stop + 1))
        view = views(**kind).trained(len(history) - 1, **window.draws_by())
        shown, size = view.of(history), len(view.shown)
        kept = np.ones(size, bool) if dropout is None else dropout.kept(size, **window.draws_by())
        assert labels[row][labels[row] != IGNORE].tolist() == shown.items.tolist()
        assert behaviors[row][labels[row] != IGNORE].tolist() == shown.behaviors.tolist()
        for place in range(len(shown)):
            alone = collate(model.encoder.encode([shown.keep(slice(place)).keep(kept[:place])]))
            alone = alone.hide(torch.from_numpy(~view.hidden[:place][kept[:place]])[None])
            with inference(model):
                expected = model.states(alone)[0, alone.last()[0]]
            torch.testing.assert_close(
                states[row, query_time[row, place]], expected, rtol=0, atol=1e-5
            )
        changed += view.hidden.any() or view.shown.tolist() != list(range(len(history) - 1))
    assert changed > 3


def test_a_paraphrase_renders_the_same_events_with_another_template(train, tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text(OTHER_WORDS)
    encoder = tiny.tiny_model("gpt2", "text").encoder
    drawn = views(templates=[str(path)])
    collator = WindowCollator(train, encoder, None, drawn)
    windows = list(WindowDataset(train, encoder))
    inputs, plain = collator(windows), WindowCollator(train, encoder)(windows)
    texts = set()
    for row, real in enumerate(inputs["attention_mask"]):
        number = drawn.trained(
            windows[row].stop - windows[row].start, **windows[row].draws_by()
        ).template
        own = collator._encoders[number]
        window = train.at(windows[row].user, windows[row].stop).keep(
            slice(windows[row].start, None)
        )
        assert inputs["input_ids"][row, real].tolist() == own.encode([window]).input_ids.tolist()
        texts.add(number)
    assert texts == {0, 1}
    assert torch.equal(inputs["labels"], plain["labels"])


def test_a_template_with_other_fields_is_refused(train):
    encoder = tiny.tiny_model("gpt2", "text").encoder
    with pytest.raises(ConfigError, match=r"templates, 'titles'.*fields text.*the same fields"):
        WindowCollator(train, encoder, None, views(templates=["titles"]))
    with pytest.raises(ConfigError, match="did you mean 'prose'"):
        WindowCollator(train, encoder, None, views(templates=["prosa"]))


def test_two_views_that_would_be_the_same_are_refused():
    with pytest.raises(ValueError, match=r"kind of train\.augmentation"):
        TrainConfig(contrastive={"weight": 0.1})


# --- negatives -----------------------------------------------------------------------------------


def test_a_draw_follows_from_the_seed_and_the_step_alone():
    one, same, other = (Negatives(np.ones(500), 60, seed=seed) for seed in (3, 3, 4))
    assert one.draw(7).tolist() == same.draw(7).tolist()
    assert one.draw(7).tolist() != one.draw(8).tolist()
    assert one.draw(7).tolist() != other.draw(7).tolist()


def test_items_are_drawn_as_often_as_their_inclusion_says_and_once_at_most():
    proposal = half_popular(np.repeat([2, 5], [30, 10]), 8)
    assert np.isclose(proposal.sum(), 1)
    negatives = Negatives(proposal, 2)
    draws = [negatives.draw(step).tolist() for step in range(4000)]
    assert all(len(draw) == len(set(draw)) for draw in draws)
    often = np.bincount(np.concatenate(draws).astype(int), minlength=8) / 4000
    expected = 2 * np.array([1, 1, 7, 1, 1, 3, 1, 1]) / 16
    np.testing.assert_allclose(often, expected, atol=0.03)
    np.testing.assert_allclose(negatives.inclusion, expected, rtol=1e-6)


def test_no_item_is_more_than_certain_and_enough_negatives_are_the_catalogue():
    assert Negatives(np.array([9.0, 1.0, 1.0]), 2).inclusion[0] == 1
    assert Negatives(np.ones(6), 6).draw(0).tolist() == list(range(6))
