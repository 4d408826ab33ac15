"""Repeat counts of items and aggregate features: exact values, for every removal and session."""

import numpy as np
import pytest
import torch

from llm_influence import Explainer, Feedback
from llm_influence.attribution.engine import Engine
from llm_influence.attribution.renderings import REMOVALS, Players, render
from llm_influence.attribution.target import bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.data.catalogue import Catalogue
from llm_influence.errors import ConfigError
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import ItemScores, log_odds
from llm_influence.rendering.encoder import collate
from llm_influence.rendering.time_words import GAP_EDGES
from llm_influence.types import Event, History
from tests import tiny

SEEN = ("i9", "i3", "i9", "i4", "i9", "i3")
FADING = 0.1


def counting(kind="bert", template="full", **head):
    """A model that counts, away from its start: events differ in worth, and fade."""
    config = tiny.run_config(
        kind,
        rendering={"template": template},
        model={"item_head": {"repeat_counts": True, **head}, "when": True},
    )
    model = tiny.moved(InfluenceModel.build(config, tiny.small_log()))
    with torch.no_grad():
        model.item_head.repeat_counts.log_fading.fill_(np.log(FADING))
    return model


@pytest.fixture(scope="module", params=["bert", "gpt2", "gru"])
def model(request):
    return counting(request.param)


def typed(*items, step=3600):
    events = [
        Event(item, tiny.BEHAVIORS[n % 3], 1_000_000 + n * step) for n, item in enumerate(items)
    ]
    return History.from_events("typed", events)


def uncounted(model, histories):
    """(B, I) logits of the states alone."""
    batch = collate(model.encoder.encode(histories))
    with torch.no_grad():
        query = model.at_time(QueryState(model.last_states(batch)), batch.when)
        return query.hidden, model.item_head(query, model.item_vectors())


def test_probabilities_are_those_of_logits_and_counts(model):
    history = typed(*SEEN)
    repeat_counts = model.item_head.repeat_counts
    states, logits = uncounted(model, [history])
    batch = collate(model.encoder.encode([history]))
    item = (batch.input_ids[0] >= model.first_item).nonzero()[:, 0]
    assert len(item) == len(SEEN)
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(model.embed(batch)[0, item], dim=-1)
        raw = repeat_counts.worth(vectors * vectors.shape[-1] ** 0.5)[:, 0]
        worth = torch.nn.functional.softplus(raw).double().numpy()
        weight = float(repeat_counts.gate(states).exp())
        found = model(batch).item_logits.double().softmax(dim=1)[0].numpy()
    assert np.ptp(worth) > 1e-3
    chances = logits.double().softmax(dim=1)[0].numpy()
    for place, (code, own) in enumerate(zip(model.catalogue.index(SEEN), worth, strict=True)):
        chances[code] += weight * own * (len(SEEN) - place) ** -FADING
    np.testing.assert_allclose(found, chances / chances.sum(), rtol=1e-4)


def test_a_catalogue_in_chunks_is_counted_whole(model, monkeypatch):
    histories = [typed(*SEEN), typed("i1", "i1"), typed()]
    batch = collate(model.encoder.encode(histories))
    monkeypatch.setattr(ItemScores, "chunk", 7)
    with torch.no_grad():
        query = model.query(batch)
        whole = model.heads(query).item_logits
        chunks = torch.cat([part for _, part in model.item_scores(query).chunks()], dim=1)
    plain = uncounted(model, histories)[1]
    assert not torch.allclose(whole[:2], plain[:2], atol=1e-2)
    torch.testing.assert_close(whole[2:], plain[2:])  # nothing was seen
    torch.testing.assert_close(chunks, whole)


def test_counts_at_a_place_are_those_of_the_events_before_it(model):
    history = typed(*SEEN)
    batch = collate(model.encoder.encode([history, typed("i2")]))
    with torch.no_grad():
        every = model.query_at(batch, batch.ends)[0]
        for count in range(len(SEEN) + 1):
            prefix = collate(model.encoder.encode([history.keep(slice(count))]))
            alone = model.query_at(prefix, prefix.last()[:, None])[0, 0]
            ours = model.item_head(every[count], model.item_vectors())
            torch.testing.assert_close(
                ours, model.item_head(alone, model.item_vectors()), rtol=1e-4, atol=1e-4
            )


def test_a_session_counts_like_the_whole_history(model):
    history = typed(*SEEN)
    session = model.session(history.keep(slice(2)))
    for event in history.events()[2:]:
        session.append(event)
    ((_, whole),) = model.predict([history])
    torch.testing.assert_close(
        session.prediction.item_logits, whole.item_logits, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_removed_event_is_not_counted(model, removal):
    history = typed(*SEEN)
    bound = bind("i9", model, [history])
    values = ValueFunction(model, [history], bound, removal)
    every, none = np.ones(len(SEEN), bool), np.zeros(len(SEEN), bool)
    without = every.copy()
    without[[0, 2, 4]] = False
    found = values([np.stack([every, without, none])])[0]
    codes = torch.tensor([9])
    batch = collate(model.encoder.encode([history]))
    with torch.no_grad():
        whole = log_odds(model(batch).item_logits, codes)
        assert found[0] == pytest.approx(float(whole), abs=1e-4)
        for value, kept in zip(found[1:], (without, none), strict=True):
            if removal == "drop":
                logits = model(collate(model.encoder.encode([history.keep(kept)]))).item_logits
            elif removal == "mask":
                logits = model(batch.hide(torch.from_numpy(kept)[None])).item_logits
            else:  # the state is that of neutral events, the counts are of the others
                read = render(model.encoder, [history], Players(), [0], [kept], removal)
                states, shown = Engine(model).states(read), read.batch(np.array([0]))[0]
                rest = torch.isin(shown.event_index, torch.from_numpy(np.flatnonzero(kept)))
                logits = model.heads(model.query(shown, states=states, counted=rest)).item_logits
            assert value == pytest.approx(float(log_odds(logits, codes)), abs=1e-4)
    # what was seen three times leaves more than its share of the state
    query = model.query(batch)
    counted = model.item_head(query, model.item_vectors())
    plain = model.item_head(QueryState(query.hidden), model.item_vectors())
    assert log_odds(counted, codes) > log_odds(plain, codes)
    assert found[1] < found[0]


@pytest.mark.parametrize("template", ["fused", "full"])
def test_paths_with_repeat_counts_add_up_to_the_value(template):
    model, history = counting(template=template), typed(*SEEN)
    for method in ("integrated_gradients", "event_path_integrated_gradients"):
        found = Explainer(model, method, baseline="zero").explain(history, "i9")
        assert found.quality.completeness_gap < 0.01
        first, second = Explainer(model, method).explain([history, typed("i1", "i2")], "i9")
        assert max(first.quality.completeness_gap, second.quality.completeness_gap) < 0.01
        alone = Explainer(model, method, batch_size=1).explain(history, "i9")
        np.testing.assert_allclose(alone.values, first.values, atol=1e-4)


def test_a_saved_model_counts_alike(model, tmp_path):
    batch = collate(model.encoder.encode([typed(*SEEN)]))
    model.save_pretrained(tmp_path / "model", with_backbone=model.backbone.kind == "recurrent")
    again = InfluenceModel.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(again(batch).item_logits, model(batch).item_logits)


def test_items_added_later_are_counted():
    model = counting()
    table = tiny.items_table(32).slice(30)
    model.add_items(Catalogue.from_table(table))
    with torch.no_grad():
        seen = model(collate(model.encoder.encode([typed("i3", "i31", "i31")]))).item_logits
        plain = uncounted(model, [typed("i3", "i31", "i31")])[1]
    counted = ((seen - plain)[0].exp() - 1) * plain.softmax(dim=1)[0]
    assert counted[31] > 1.5 * counted[3] > 0
    assert (counted[[i for i in range(32) if i not in (3, 31)]] == 0).all()


def test_repeat_counts_that_are_impossible_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"rendering.style token for model.item_head.repeat_counts"
    ):
        tiny.run_config("bert", "text", model={"item_head": {"repeat_counts": True}})
    path = tmp_path / "blind.yaml"
    path.write_text('{"name": "blind", "event": "{behavior}"}')
    config = tiny.run_config(
        rendering={"template": str(path)}, model={"item_head": {"repeat_counts": True}}
    )
    with pytest.raises(ConfigError, match="has no item"):
        InfluenceModel.build(config, tiny.small_log())
    sampled = tiny.run_config(model={"item_head": {"repeat_counts": True, "loss": "sampled"}})
    with pytest.raises(ConfigError, match="loss full"):
        InfluenceModel.build(sampled, tiny.small_log())


# --- aggregate features ---------------------------------------------------------------------

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
