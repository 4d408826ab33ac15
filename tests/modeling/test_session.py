"""A history that grows: read event by event, the answer is that of reading it whole."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from llm_influence.config.model import RECURRENT
from llm_influence.data.catalogue import Catalogue
from llm_influence.errors import DataError, ModelError, UnknownNameError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import Event, History
from tests import tiny

CACHING = ("bert", "gpt2", "llama", *RECURRENT)
KINDS = pytest.mark.parametrize("kind", CACHING)
STYLES = pytest.mark.parametrize("style", ["token", "text", "fused"])


def model_with(kind, template="full", **limits):
    style = "text" if template == "titles" else "token"
    rendering = {"max_events": 40, "template": template, **limits}
    config = tiny.run_config(kind, style, rendering=rendering)
    return tiny.moved(InfluenceModel.build(config, tiny.small_log()))


def stream(count, seed=0):
    """Events of all behaviours, with and without a value, some at the same second."""
    rng = np.random.default_rng(seed)
    times = 1_000_000 + np.cumsum(rng.choice([0, 5, 4_000, 90_000, 9_000_000], size=count))
    return [
        Event(
            f"i{rng.integers(30)}",
            tiny.BEHAVIORS[rng.integers(3)],
            int(time),
            None if rng.random() < 0.3 else float(rng.integers(1, 6)),
        )
        for time in times
    ]


def assert_whole(model, session):
    """The session's answer is that of its window, read whole."""
    ((_, whole),) = model.predict([session.window])
    for name in ("item_logits", "behavior_logits"):
        ours, theirs = getattr(session.prediction, name), getattr(whole, name)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1, theirs.abs().max()))


@pytest.fixture(scope="module")
def roomy():
    made = {}

    def get(kind, style):
        if (kind, style) not in made:
            template = {"token": "full", "text": "titles", "fused": "fused"}[style]
            made[kind, style] = model_with(kind, template)
        return made[kind, style]

    return get


@KINDS
@STYLES
def test_every_answer_is_that_of_the_whole_history(roomy, kind, style):
    model, events = roomy(kind, style), stream(24)
    session = model.session(History.from_events("u", events[:4]))
    assert_whole(model, session)
    seen = [session.prediction.item_logits]
    for number, event in enumerate(events[4:], start=5):
        session.append(event)
        assert len(session.history) == number
        assert_whole(model, session)
        seen.append(session.prediction.item_logits)
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))
    slid = len(session.window) < len(session.history)
    # 128 tokens do not hold 24 titles
    assert slid is (style == "text" and kind not in RECURRENT)
    if not slid:
        assert session.readings == 1
        everything = History.from_events("u", events)
        found, expected = session.recommend(5), model.recommend(everything, 5)
        assert [r.item for r in found] == [r.item for r in expected]
        odds = [r.log_odds for r in expected]
        assert [r.log_odds for r in found] == pytest.approx(odds, abs=1e-4)


@KINDS
def test_only_the_new_tokens_pass_through_the_backbone(roomy, kind, monkeypatch):
    model, events = roomy(kind, "token"), stream(8)
    widths, attend = [], model.attend

    def counted(batch, vectors, **options):
        widths.append(vectors.shape[1])
        return attend(batch, vectors, **options)

    monkeypatch.setattr(model, "attend", counted)
    session = model.session(History.from_events("u", events[:5]))
    for event in events[5:]:
        session.append(event)
    assert widths == [1 + 5 * 4, 4, 4, 4]


def test_a_full_window_slides_and_is_read_whole_each_time():
    model, events = model_with("llama", max_events=6), stream(14)
    session = model.session(History.from_events("u", events[:2]))
    readings = []
    for event in events[2:]:
        session.append(event)
        assert_whole(model, session)
        ((_, whole),) = model.predict([session.history])
        torch.testing.assert_close(session.prediction.item_logits, whole.item_logits)
        readings.append(session.readings)
    assert readings == [1] * 4 + list(range(2, 10))


def test_a_window_that_is_cut_back_is_read_whole_once_in_a_while():
    model, events = model_with("gpt2", max_events=6), stream(16)
    session = model.session(History.from_events("u", []), keep=3)
    lengths, readings = [], []
    for event in events:
        session.append(event)
        assert_whole(model, session)
        lengths.append(len(session.window))
        readings.append(session.readings)
    assert lengths == [1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 3, 4, 5, 6, 3, 4]
    assert readings == [1] * 6 + [2] * 4 + [3] * 4 + [4] * 2
    assert len(session.history) == 16
    seen = {event.item for event in events}
    assert not seen & {r.item for r in session.recommend(30)}  # those cut off stay excluded


def test_the_log_and_later_items_share_one_session(log):
    model = model_with("llama")
    session = model.session(log.at(0))
    model.add_items(Catalogue.from_ids(["new lamp"]))
    session.append(Event("new lamp", "cart", int(log.at(0).timestamps[-1]) + 60))
    assert_whole(model, session)
    assert session.readings == 1


def test_changed_weights_are_read_again(roomy, log):
    model = model_with("llama")
    session = model.session(log.at(0))
    with torch.no_grad():
        model.embeddings.residual += 0.1
    session.reread()
    assert_whole(model, session)


@pytest.mark.parametrize(
    ("event", "error", "message"),
    [
        (Event("i1", "clik", 10**9), UnknownNameError, "'clik'.*did you mean 'click'"),
        (Event("none", "click", 10**9), UnknownNameError, "'none'"),
        (Event("i1", "click", 5), DataError, "5 s older than the last"),
    ],
)
def test_a_wrong_event_is_refused_and_changes_nothing(roomy, event, error, message):
    model = roomy("llama", "token")
    session = model.session(History.from_events("u", [Event("i2", "click", 10)]))
    with pytest.raises(error, match=message):
        session.append(event)
    assert len(session.history) == len(session.window) == 1
    session.append(Event("i3", "click", 11))
    assert_whole(model, session)


def test_what_cannot_be_followed_is_refused(log):
    with pytest.raises(DataError, match="keep is 0"):
        tiny.tiny_model("gpt2").session(log.at(0), keep=0)
    with pytest.raises(ModelError, match=r"modernbert caches 0 of .* tokens.*model\.predict"):
        tiny.tiny_model("modernbert").session(log.at(0))
