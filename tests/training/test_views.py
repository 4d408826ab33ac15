"""Windows shown in another way: what is drawn, what is rendered, what is asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_influence.config.training import AugmentationConfig, TrainConfig
from llm_influence.data.splits import split_log
from llm_influence.errors import ConfigError
from llm_influence.modeling.backbone import inference
from llm_influence.rendering.batch import EncodedBatch, collate
from llm_influence.training.augmentation import EventDropout, Views, events_before
from llm_influence.training.batches import IGNORE, WindowCollator, WindowDataset
from tests import tiny

WINDOW = {"epoch": 2, "user": 3, "start": 0}
OTHER_WORDS = 'name: other\nhistory: "so:"\nevent: "then {value} for {text} by {behavior} {gap}"\n'


def views(seed=0, share=1.0, **kinds):
    return Views(AugmentationConfig(share=share, **kinds), seed=seed)


@pytest.fixture(scope="module")
def train():
    return split_log(tiny.small_log(users=20)).train


@pytest.fixture(scope="module", params=[("bert", "token"), ("gpt2", "text")])
def model(request):
    return tiny.tiny_model(*request.param)


# --- the draws -----------------------------------------------------------------------------


def test_a_crop_is_a_stretch_and_what_comes_after_it_is_its_last_label():
    found = [views(crop=0.4).trained(10, **{**WINDOW, "user": user}) for user in range(200)]
    for view in found:
        assert view.shown.tolist() == list(range(view.shown[0], view.shown[0] + 6))
        assert view.after == view.shown[-1] + 1
    assert {int(view.shown[0]) for view in found} == {0, 1, 2, 3, 4}


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
    found = [drawn.trained(8, epoch=0, user=user, start=0) for user in range(3000)]
    cut = np.mean([len(view.shown) < 8 for view in found])
    shuffled = np.mean([len(v.shown) == 8 and (np.diff(v.shown) != 1).any() for v in found])
    assert cut == pytest.approx(0.3, abs=0.03)
    assert shuffled == pytest.approx(0.3, abs=0.03)


def test_nothing_is_changed_unless_a_kind_is_on(model, train):
    windows = list(WindowDataset(train, model.encoder))
    usual = WindowCollator(train, model.encoder)(windows)
    same = WindowCollator(train, model.encoder, None, views())(windows)
    assert usual.keys() == same.keys()
    assert all(torch.equal(usual[name], same[name]) for name in usual)


# --- what is rendered and asked ------------------------------------------------------------


def test_a_hidden_event_is_not_asked_from():
    kept, hidden = np.array([1, 0, 1, 1, 1], bool), np.array([0, 0, 1, 0, 1], bool)
    assert events_before(kept, hidden).tolist() == [0, 1, 1, 1, 3, 3]


@pytest.mark.parametrize("kind", [{"crop": 0.5}, {"mask": 0.5}, {"reorder": 1.0}])
@pytest.mark.parametrize("dropout", [None, EventDropout(0.9, share=1.0)])
def test_labels_are_the_events_shown_each_asked_behind_those_shown_before_it(
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


def test_a_paraphrase_says_the_same_events_in_the_words_of_another_template(train, tmp_path):
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


def test_a_template_that_says_something_else_is_refused(train):
    encoder = tiny.tiny_model("gpt2", "text").encoder
    with pytest.raises(ConfigError, match=r"templates, 'titles'.*says text.*the same fields"):
        WindowCollator(train, encoder, None, views(templates=["titles"]))
    with pytest.raises(ConfigError, match="no template 'prosa'"):
        WindowCollator(train, encoder, None, views(templates=["prosa"]))


def test_two_views_that_would_be_the_same_are_refused():
    with pytest.raises(ValueError, match=r"kind of train\.augmentation"):
        TrainConfig(contrastive={"weight": 0.1})
