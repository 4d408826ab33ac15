"""What is summed up over a history: the sums themselves, for every way of asking."""

import numpy as np
import pytest
import torch

from llm_influence import Explainer, Feedback
from llm_influence.attribution.engine import Engine
from llm_influence.attribution.renderings import REMOVALS, Players, render
from llm_influence.attribution.target import bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import collate
from llm_influence.rendering.time_words import GAP_EDGES
from llm_influence.types import Event, History
from tests import tiny

HALF_LIFE = 2.0
DAY = 86_400
HEAD = {"weight": 1.0, "positive_from": 4.0, "hidden": 8, "aggregate_days": HALF_LIFE}
TARGET = Feedback("i3")


def summing(template="full", kind="bert", **head):
    config = tiny.run_config(
        kind,
        rendering={"template": template},
        model={"feedback_head": {**HEAD, **head}, "when": True},
    )
    return tiny.moved(InfluenceModel.build(config, tiny.small_log()))


@pytest.fixture(scope="module", params=["full", "fused"])
def model(request):
    return summing(request.param)


def history(count=6):
    days = (0, 1, 1, 3, 10, 12)
    values = (5.0, None, 3.0, 2.0, 4.0, 1.0)
    events = [
        Event(f"i{n}", tiny.BEHAVIORS[(0, 1, 0, 2, 0, 1)[n]], 1_000_000 + days[n] * DAY, values[n])
        for n in range(count)
    ]
    return History.from_events("summed", events)


def middle(edges, code):
    """What an amount or a gap of this bucket is taken for; code 0 is none."""
    place = code - 1
    return edges[-1] if place == len(edges) - 1 else (edges[place] + edges[place + 1]) / 2


def by_hand(model, events):
    """(F,) signed logarithms of the sums, from the history itself."""
    vocabulary = model.encoder.vocabulary
    codes = vocabulary.columns([events]).codes
    edges = vocabulary.values.edges
    amounts = [middle(edges, code) if code else 0.0 for code in codes["value"]]
    gaps = [middle(GAP_EDGES / DAY, code) if code else 0.0 for code in codes["gap"]]
    ages = [sum(gaps[n + 1 :]) for n in range(len(gaps))]
    found = []
    for weights in (np.ones(len(ages)), 0.5 ** (np.array(ages) / HALF_LIFE)):
        for columns in (np.ones(len(ages)), np.array(amounts)):
            found += [
                (weights * columns)[codes["behavior"] == behavior].sum()
                for behavior in range(len(vocabulary.behaviors))
            ]
    return np.log1p(found)


def totals_of(model, batch):
    totals = model.feedback_head.totals
    found = totals(batch, batch.ends, (batch.attention_mask & (batch.event_index >= 0)).float())
    return (found * totals.deviation + totals.mean).numpy()


def test_sums_are_those_of_the_events_up_to_each_place(model):
    whole = history()
    batch = collate(model.encoder.encode([history(3), whole]))
    found = totals_of(model, batch)
    np.testing.assert_allclose(found[1, 0], 0, atol=1e-6)
    for count in range(1, len(whole) + 1):
        expected = by_hand(model, whole.keep(slice(count)))
        np.testing.assert_allclose(found[1, count], expected, atol=1e-5)
    np.testing.assert_allclose(found[0, 3], found[1, 3], atol=1e-5)


def test_training_has_mean_zero_and_deviation_one():
    log = tiny.small_log()
    model = summing()
    batch = collate(model.encoder.encode([log.at(n) for n in range(len(log))]))
    totals = model.feedback_head.totals
    found = totals(batch, batch.ends, (batch.attention_mask & (batch.event_index >= 0)).float())
    rows = [found[n, 1 : int(count) + 1] for n, count in enumerate(batch.num_events)]
    every = torch.cat(rows)
    np.testing.assert_allclose(every.mean(dim=0), 0, atol=1e-5)
    np.testing.assert_allclose(every.std(dim=0, correction=0), 1, atol=1e-4)


def test_a_template_without_them_sums_no_behaviours_values_or_recency():
    model = summing("item")
    found = totals_of(model, collate(model.encoder.encode([history()])))
    np.testing.assert_allclose(found[0], np.log1p(np.arange(7))[:, None], atol=1e-5)


@pytest.mark.parametrize("removal", REMOVALS)
def test_removed_events_add_nothing(model, removal):
    events = history()
    values = ValueFunction(model, [events], bind(TARGET, model, [events]), removal)
    without = np.array([1, 1, 0, 0, 1, 1], dtype=bool)
    found = values([np.stack([np.ones(6, bool), without])])[0]
    batch = collate(model.encoder.encode([events]))
    shown = {
        "drop": collate(model.encoder.encode([events.keep(without)])),
        "mask": batch.hide(torch.from_numpy(without)[None]),
    }
    head = model.trained_feedback
    behavior = model.encoder.vocabulary.behaviors.index(head.scale.behaviors[0])
    codes = torch.tensor([3]), torch.tensor([behavior])
    with torch.no_grad():
        for value, read in zip(found, (batch, shown.get(removal)), strict=True):
            if read is not None:
                assert value == pytest.approx(
                    float(model.feedback(model.query(read), *codes)), abs=1e-4
                )
        if removal == "replace":  # the state is that of neutral events, the sums are of the others
            read = render(model.encoder, [events], Players(), [0], [without], removal)
            states, batch = Engine(model).states(read), read.batch(np.array([0]))[0]
            rest = torch.isin(batch.event_index, torch.tensor([0, 1, 4, 5]))
            query = model.query_from(states, batch, counted=rest)
            assert found[1] == pytest.approx(float(model.feedback(query, *codes)), abs=1e-4)
            sums = query[0, -head.totals.size :] * head.totals.deviation + head.totals.mean
            np.testing.assert_allclose(sums[0], np.log1p(2), atol=1e-5)  # clicks 0 and 4 of three


def test_paths_to_the_history_add_up_to_its_value(model):
    for method in ("integrated_gradients", "event_path_integrated_gradients"):
        found = Explainer(model, method).explain(history(), TARGET)
        assert found.quality.completeness_gap < 0.01


def test_what_is_summed_moves_the_scores_of_events():
    model = summing()
    with torch.no_grad():
        model.feedback_head.wide.weight.zero_()
    silent = Explainer(model, "leave_one_out").explain(history(), TARGET).scores
    with torch.no_grad():
        model.feedback_head.wide.weight.fill_(0.3)
    heard = Explainer(model, "leave_one_out").explain(history(), TARGET).scores
    assert np.abs(heard - silent).max() > 0.05


def test_a_saved_model_sums_alike(model, tmp_path):
    batch = collate(model.encoder.encode([history()]))
    model.save_pretrained(tmp_path / "model")
    again = InfluenceModel.from_pretrained(tmp_path / "model")
    codes = torch.tensor([3]), torch.tensor([0])
    with torch.no_grad():
        ours, theirs = (m.feedback(m.query(batch), *codes) for m in (again, model))
    torch.testing.assert_close(ours, theirs)


def test_style_text_is_refused():
    with pytest.raises(ValueError, match=r"rendering.style token for model.feedback_head.totals"):
        tiny.run_config("bert", "text", model={"feedback_head": HEAD})
