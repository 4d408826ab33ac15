"""Aggregate features: exact values, for every removal and session."""

import numpy as np
import pytest
import torch

from llm_influence import Explainer, Feedback
from llm_influence.attribution.engine import Engine
from llm_influence.attribution.renderings import REMOVALS, Players, render
from llm_influence.attribution.target import bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import collate
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
def summing_model(request):
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


def sums_of(model, batch):
    aggregates = model.feedback_head.aggregates
    found = aggregates(batch, batch.ends, (batch.attention_mask & (batch.event_index >= 0)).float())
    return (found * aggregates.deviation + aggregates.mean).numpy()


def test_sums_are_those_of_the_events_up_to_each_place(summing_model):
    whole = history()
    batch = collate(summing_model.encoder.encode([history(3), whole]))
    found = sums_of(summing_model, batch)
    np.testing.assert_allclose(found[1, 0], 0, atol=1e-6)
    for count in range(1, len(whole) + 1):
        expected = by_hand(summing_model, whole.keep(slice(count)))
        np.testing.assert_allclose(found[1, count], expected, atol=1e-5)
    np.testing.assert_allclose(found[0, 3], found[1, 3], atol=1e-5)


def test_training_has_mean_zero_and_deviation_one():
    log = tiny.small_log()
    model = summing()
    batch = collate(model.encoder.encode([log.at(n) for n in range(len(log))]))
    aggregates = model.feedback_head.aggregates
    found = aggregates(batch, batch.ends, (batch.attention_mask & (batch.event_index >= 0)).float())
    rows = [found[n, 1 : int(count) + 1] for n, count in enumerate(batch.num_events)]
    every = torch.cat(rows)
    np.testing.assert_allclose(every.mean(dim=0), 0, atol=1e-5)
    np.testing.assert_allclose(every.std(dim=0, correction=0), 1, atol=1e-4)


def test_a_template_without_them_sums_no_behaviours_values_or_recency():
    model = summing("item")
    found = sums_of(model, collate(model.encoder.encode([history()])))
    np.testing.assert_allclose(found[0], np.log1p(np.arange(7))[:, None], atol=1e-5)


@pytest.mark.parametrize("removal", REMOVALS)
def test_removed_events_add_nothing_to_aggregates(summing_model, removal):
    events = history()
    values = ValueFunction(summing_model, [events], bind(TARGET, summing_model, [events]), removal)
    without = np.array([1, 1, 0, 0, 1, 1], dtype=bool)
    found = values([np.stack([np.ones(6, bool), without])])[0]
    batch = collate(summing_model.encoder.encode([events]))
    shown = {
        "drop": collate(summing_model.encoder.encode([events.keep(without)])),
        "mask": batch.hide(torch.from_numpy(without)[None]),
    }
    head = summing_model.trained_feedback
    behavior = summing_model.encoder.vocabulary.behaviors.index(head.scale.behaviors[0])
    codes = torch.tensor([3]), torch.tensor([behavior])
    with torch.no_grad():
        for value, read in zip(found, (batch, shown.get(removal)), strict=True):
            if read is not None:
                assert value == pytest.approx(
                    float(summing_model.feedback(summing_model.query(read), *codes)), abs=1e-4
                )
        if removal == "replace":  # the state is that of neutral events, the sums are of the others
            read = render(summing_model.encoder, [events], Players(), [0], [without], removal)
            states, batch = Engine(summing_model).states(read), read.batch(np.array([0]))[0]
            rest = torch.isin(batch.event_index, torch.tensor([0, 1, 4, 5]))
            query = summing_model.query(batch, states=states, counted=rest)
            assert found[1] == pytest.approx(float(summing_model.feedback(query, *codes)), abs=1e-4)
            sums = query.aggregates[0] * head.aggregates.deviation + head.aggregates.mean
            np.testing.assert_allclose(sums[0], np.log1p(2), atol=1e-5)  # clicks 0 and 4 of three


def test_paths_with_aggregates_add_up_to_the_value(summing_model):
    for method in ("integrated_gradients", "event_path_integrated_gradients"):
        found = Explainer(summing_model, method).explain(history(), TARGET)
        assert found.quality.completeness_gap < 0.01


def test_what_is_summed_moves_the_scores_of_events():
    model = summing()
    with torch.no_grad():
        model.feedback_head.wide.weight.zero_()
    silent = Explainer(model, "leave_one_out").explain(history(), TARGET).values
    with torch.no_grad():
        model.feedback_head.wide.weight.fill_(0.3)
    heard = Explainer(model, "leave_one_out").explain(history(), TARGET).values
    assert np.abs(heard - silent).max() > 0.05


def test_a_saved_model_sums_alike(summing_model, tmp_path):
    batch = collate(summing_model.encoder.encode([history()]))
    summing_model.save_pretrained(tmp_path / "model")
    again = InfluenceModel.from_pretrained(tmp_path / "model")
    codes = torch.tensor([3]), torch.tensor([0])
    with torch.no_grad():
        ours, theirs = (m.feedback(m.query(batch), *codes) for m in (again, summing_model))
    torch.testing.assert_close(ours, theirs)


def test_aggregates_of_style_text_are_refused():
    with pytest.raises(
        ValueError, match=r"rendering.style token for model.feedback_head.aggregate_days"
    ):
        tiny.run_config("bert", "text", model={"feedback_head": HEAD})
