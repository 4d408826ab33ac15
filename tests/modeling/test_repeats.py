"""Items count by how often they were seen: exactly, whoever asks and however it is read."""

import numpy as np
import pytest
import torch

from llm_influence import Explainer
from llm_influence.attribution.engine import Engine
from llm_influence.attribution.renderings import REMOVALS, Players, render
from llm_influence.attribution.target import bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.data.catalogue import Catalogue
from llm_influence.errors import ConfigError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import ItemScores, log_odds
from llm_influence.rendering.batch import collate
from llm_influence.types import Event, History
from tests import tiny

SEEN = ("i9", "i3", "i9", "i4", "i9", "i3")
FADING = 0.1


def counting(kind="bert", template="full", **head):
    """A model that counts, away from its start: events differ in worth, and fade."""
    config = tiny.run_config(
        kind,
        rendering={"template": template},
        model={"item_head": {"repeats": True, **head}, "when": True},
    )
    model = tiny.moved(InfluenceModel.build(config, tiny.small_log()))
    with torch.no_grad():
        model.item_head.repeats.log_fading.fill_(np.log(FADING))
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
        states = model.asked(model.last_states(batch), batch.when)
        return states, model.item_head(states, model.item_vectors())


def test_chances_are_those_of_what_is_expected_and_what_was_seen(model):
    history = typed(*SEEN)
    repeats = model.item_head.repeats
    states, logits = uncounted(model, [history])
    batch = collate(model.encoder.encode([history]))
    item = (batch.input_ids[0] >= model.first_item).nonzero()[:, 0]
    assert len(item) == len(SEEN)
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(model.embed(batch)[0, item], dim=-1)
        raw = repeats.worth(vectors * vectors.shape[-1] ** 0.5)[:, 0]
        worth = torch.nn.functional.softplus(raw).double().numpy()
        weight = float(repeats.gate(states).exp())
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
        states = model.query(batch)
        whole = model.heads(states).item_logits
        chunks = torch.cat([part for _, part in model.item_scores(states).chunks()], dim=1)
    plain = uncounted(model, histories)[1]
    assert not torch.allclose(whole[:2], plain[:2], atol=1e-2)
    torch.testing.assert_close(whole[2:], plain[2:])  # nothing was seen
    torch.testing.assert_close(chunks, whole)


def test_every_place_is_told_what_came_before_it(model):
    history = typed(*SEEN)
    batch = collate(model.encoder.encode([history, typed("i2")]))
    with torch.no_grad():
        states = model.states(batch)
        at = states.gather(1, batch.ends[..., None].expand(-1, -1, states.shape[-1]))
        every = model.remember(at, batch, batch.ends)[0]
        for count in range(len(SEEN) + 1):
            prefix = collate(model.encoder.encode([history.keep(slice(count))]))
            last = prefix.last()[:, None]
            alone = model.remember(model.last_states(prefix)[:, None], prefix, last)[0, 0]
            ours = model.item_head(every[count], model.item_vectors())
            torch.testing.assert_close(
                ours, model.item_head(alone, model.item_vectors()), rtol=1e-4, atol=1e-4
            )


def test_a_history_that_grows_is_counted_as_the_whole(model):
    history = typed(*SEEN)
    session = model.follow(history.keep(slice(2)))
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
                logits = model.heads(model.query_from(states, shown, counted=rest)).item_logits
            assert value == pytest.approx(float(log_odds(logits, codes)), abs=1e-4)
    # what was seen three times leaves more than its share of the state
    states = model.query(batch)
    counted = model.item_head(states, model.item_vectors())
    plain = model.item_head(states[:, : model.backbone.width], model.item_vectors())
    assert log_odds(counted, codes) > log_odds(plain, codes)
    assert found[1] < found[0]


@pytest.mark.parametrize("template", ["fused", "full"])
def test_paths_to_the_history_add_up_to_its_value(template):
    model, history = counting(template=template), typed(*SEEN)
    for method in ("integrated_gradients", "event_path_integrated_gradients"):
        found = Explainer(model, method, baseline="zero").explain(history, "i9")
        assert found.quality.completeness_gap < 0.01
        first, second = Explainer(model, method).explain([history, typed("i1", "i2")], "i9")
        assert max(first.quality.completeness_gap, second.quality.completeness_gap) < 0.01
        alone = Explainer(model, method, batch_size=1).explain(history, "i9")
        np.testing.assert_allclose(alone.scores, first.scores, atol=1e-4)


def test_a_saved_model_counts_alike(model, tmp_path):
    batch = collate(model.encoder.encode([typed(*SEEN)]))
    model.save_pretrained(tmp_path / "model")
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


def test_what_cannot_be_counted_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rendering.style token for model.item_head.repeats"):
        tiny.run_config("bert", "text", model={"item_head": {"repeats": True}})
    path = tmp_path / "blind.yaml"
    path.write_text('{"name": "blind", "event": "{behavior}"}')
    config = tiny.run_config(
        rendering={"template": str(path)}, model={"item_head": {"repeats": True}}
    )
    with pytest.raises(ConfigError, match="says no item"):
        InfluenceModel.build(config, tiny.small_log())
    sampled = tiny.run_config(model={"item_head": {"repeats": True, "loss": "sampled"}})
    with pytest.raises(ConfigError, match="loss full"):
        InfluenceModel.build(sampled, tiny.small_log())
