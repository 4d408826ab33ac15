"""The memory in a model: its equation, every removal, places, sessions, chunks, new items."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from llm_influence import Explainer
from llm_influence.attribution.renderings import REMOVALS
from llm_influence.attribution.target import bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.data.catalogue import Catalogue
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.gates import AGE, BEHAVIOR, DISTANCE, ITEM, VALUE, Places
from llm_influence.modeling.item_links import ItemLinks
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import ItemScores, log_odds
from llm_influence.rendering.encoder import collate
from llm_influence.types import Event, History
from tests import tiny

SEEN = ("i9", "i3", "i9", "i4", "i3")


def remembering(kind="bert", style="token", template=None):
    """A model whose memory is away from its start: behaviours and ages differ."""
    on = {"item_head": {"memory": {"enabled": True}}}
    config = tiny.run_config(
        kind, style, model=on, **({"rendering": {"template": template}} if template else {})
    )
    model = tiny.moved(InfluenceModel.build(config, tiny.small_log()))
    memory, random = model.item_head.memory, torch.Generator().manual_seed(3)
    with torch.no_grad():
        memory.scales.copy_(torch.tensor([0.3, 1.5, 0.8]))
        for gate in (memory.excitation, memory.revisit):
            gate.age.copy_(-torch.rand(gate.age.shape, generator=random))
    return model


@pytest.fixture(scope="module", params=[("bert", "token"), ("gpt2", "text"), ("gru", "token")])
def model(request):
    return remembering(*request.param)


def typed(*items, step=3600):
    events = [
        Event(item, tiny.BEHAVIORS[n % 3], 1_000_000 + n * step) for n, item in enumerate(items)
    ]
    return History.from_events("typed", events)


def language(model, batch):
    """(B, I) logits of the language model alone."""
    query = model.at_time(QueryState(model.last_states(batch)), batch.when)
    return model.item_head(query, model.item_vectors())


def by_hand(model, history, logits, kept=None, rivals=None):
    """(I,) probabilities from the equation of `modeling.memory`, event by event.

    ``kept`` events are present, ``rivals`` compete for the rates.
    """
    memory, vocabulary = model.item_head.memory, model.encoder.vocabulary
    transitions, associations = (
        links.matrix().toarray() for links in (memory.transitions, memory.associations)
    )
    kept = np.ones(len(history), bool) if kept is None else kept
    rivals = kept if rivals is None else rivals
    codes = vocabulary.columns([history]).codes
    records = torch.zeros(len(history), 5, dtype=torch.int64)
    records[:, ITEM], records[:, BEHAVIOR] = (
        torch.from_numpy(codes[n].astype(np.int64)) for n in ("item", "behavior")
    )
    records[:, VALUE] = torch.from_numpy(codes["value"].astype(np.int64))
    records[:, AGE] = torch.from_numpy(history.timestamps[-1] - history.timestamps)
    records[:, DISTANCE] = torch.arange(len(history)).flip(0)
    s, t, w = memory.scales.double().numpy()
    excited, scores = np.zeros(len(logits)), logits.double().numpy().copy()
    for gate, amount, rival, rows in (
        (memory.excitation, memory.amounts[0], memory.rivalry[0], transitions),
        (memory.revisit, memory.amounts[1], memory.rivalry[1], np.eye(len(logits))),
    ):
        gates = gate(Places.of(records)).double().numpy()
        total = (gates * rivals).sum() ** float(rival.sigmoid())
        excited += (float(amount.exp()) * gates * kept / total) @ rows[codes["item"]]
    decayed = np.exp(-records[:, DISTANCE].numpy() / float(memory.decay)) * kept
    scores = w * (scores + s * decayed @ associations[codes["item"]])
    base = np.exp(scores - scores.max())
    total = base / base.sum() + t * excited
    return total / total.sum()


@torch.no_grad()
def test_probabilities_are_those_of_the_equation(model):
    history = typed(*SEEN)
    batch = collate(model.encoder.encode([history]))
    found = model(batch).item_logits.double().softmax(dim=1)[0].numpy()
    expected = by_hand(model, history, language(model, batch)[0])
    assert len(model.item_head.memory.transitions.codes)
    assert len(model.item_head.memory.associations.codes)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_a_catalogue_in_chunks_is_remembered_whole(model, monkeypatch):
    histories = [typed(*SEEN), typed("i1", "i1"), typed()]
    batch = collate(model.encoder.encode(histories))
    monkeypatch.setattr(ItemScores, "chunk", 7)
    monkeypatch.setattr("llm_influence.modeling.memory.CHUNK", 7)
    query = model.query(batch)
    whole = model.heads(query).item_logits
    chunks = torch.cat([part for _, part in model.item_scores(query).chunks()], dim=1)
    torch.testing.assert_close(chunks, whole, rtol=1e-4, atol=1e-4)
    exponent = model.item_head.memory.scales[2]
    plain = (exponent * language(model, batch)).log_softmax(dim=1)
    assert not torch.allclose(whole[:2], plain[:2], atol=1e-2)
    torch.testing.assert_close(whole[2:], plain[2:], rtol=1e-4, atol=1e-4)  # no event


@torch.no_grad()
def test_a_place_sees_the_events_before_it_at_their_age_there(model):
    history = typed(*SEEN)
    batch = collate(model.encoder.encode([history, typed("i2")]))
    every = model.query_at(batch, batch.ends)[0]
    for count in range(len(SEEN) + 1):
        prefix = collate(model.encoder.encode([history.keep(slice(count))]))
        own = model.item_head(every[count : count + 1], model.item_vectors()).log_softmax(dim=1)
        torch.testing.assert_close(own, model(prefix).item_logits, rtol=1e-3, atol=1e-3)


def test_a_session_remembers_like_the_whole_history(model):
    history = typed(*SEEN)
    session = model.session(history.keep(slice(2)))
    for event in history.events()[2:]:
        session.append(event)
    ((_, whole),) = model.predict([history])
    torch.testing.assert_close(
        session.prediction.item_logits, whole.item_logits, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_removed_event_leaves_the_ages_of_the_others(model, removal):
    history, code = typed(*SEEN), torch.tensor([9])
    values = ValueFunction(model, [history], bind("i9", model, [history]), removal)
    without = np.array([0, 1, 0, 1, 1], bool)
    found = values([np.stack([np.ones(5, bool), without])])[0]
    if removal == "replace":  # the state is that of neutral events, which is tested elsewhere
        assert np.isfinite(found).all()
        return
    with torch.no_grad():
        batch = collate(model.encoder.encode([history]))
        shown, rivals = batch.hide(torch.from_numpy(without)[None]), np.ones(5, bool)
        if removal == "drop":
            shown, rivals = collate(model.encoder.encode([history.keep(without)])), without
        chances = by_hand(model, history, language(model, shown)[0], without, rivals)
    expected = log_odds(torch.from_numpy(chances)[None].log(), code)
    assert found[1] == pytest.approx(float(expected), abs=1e-3)


def test_shares_are_what_the_events_add_to_the_probability(model):
    memory, history = model.item_head.memory, typed(*SEEN)
    query = model.query(collate(model.encoder.encode([history])))
    items = torch.tensor([9])
    with torch.no_grad():
        base = model.item_head.language_logits(query, model.item_vectors())
        associated = memory.associated(query.records, query.presence, 0, memory.items)
        base = memory.base(base, associated)
        causes, odds = memory.causes(query.records, query.presence, items)
        shares = causes / (base.softmax(dim=1)[:, 9, None] + causes.sum())
        own = model.item_head(query, model.item_vectors())[0, 9]
        mass = memory.mass(query.records, query.presence)[0, 0]
    rest = base.log_softmax(dim=1)[0, 9] - (memory.scales[1] * mass).log1p()
    assert float(1 - shares.sum()) == pytest.approx(float((rest - own).exp()), rel=1e-3)
    added = float(memory.scales[0] * memory.scales[2] * associated[0, 9])
    assert float(odds.sum()) == pytest.approx(added, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("template", ["fused", "full"])
def test_paths_of_gradients_add_up_to_the_value(template):
    model, history = remembering(template=template), typed(*SEEN)
    for method in ("integrated_gradients", "event_path_integrated_gradients"):
        found = Explainer(model, method, baseline="zero").explain(history, "i9")
        assert found.quality.completeness_gap < 0.02
        alone = Explainer(model, method, batch_size=1).explain(history, "i9")
        together = Explainer(model, method).explain([history, typed("i1", "i2")], "i9")[0]
        np.testing.assert_allclose(alone.values, together.values, atol=1e-4)


def test_a_saved_model_remembers_alike(model, tmp_path):
    batch = collate(model.encoder.encode([typed(*SEEN)]))
    model.save_pretrained(tmp_path / "model", with_backbone=model.backbone.kind == "recurrent")
    again = InfluenceModel.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(again(batch).item_logits, model(batch).item_logits)
    assert again.item_head.memory.gates() == model.item_head.memory.gates()


def test_items_added_later_have_the_mean_links_of_similar_ones(monkeypatch):
    monkeypatch.setattr("llm_influence.modeling.item_links.NEAREST", 2)
    model = remembering()
    before = model.item_head.memory.transitions.matrix().toarray()
    popularity = model.item_head.memory.popularity
    texts = model.embeddings.words[model.first_item :]
    model.add_items(Catalogue.from_table(tiny.items_table(32).slice(30)))
    new = torch.nn.functional.normalize(model.embeddings.words[model.first_item + 31], dim=0)
    near = (torch.nn.functional.normalize(texts, dim=1) @ new).topk(2).indices.numpy()
    after = model.item_head.memory.transitions.matrix().toarray()
    np.testing.assert_allclose(after[:30, :30], before)
    np.testing.assert_allclose(after[31, :30], before[near].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(after[:30, 31], before[:, near].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(model.item_head.memory.popularity[31], popularity[near].mean())
    query = model.query(collate(model.encoder.encode([typed("i31")])))
    excited = model.item_head.memory.excited(query.records, query.presence, 0, 32)[0]
    assert excited[31] > 0  # it can be repeated


def test_a_later_item_does_not_inherit_the_links_of_items_to_themselves():
    links = ItemLinks.of(csr_array(np.array([[-9.0, 1.0], [2.0, -9.0]])))
    longer = links.extended(csr_array(np.array([[0.5, 0.5]]))).matrix().toarray()
    np.testing.assert_allclose(longer[2], [1.0, 0.5, 0.75])
    np.testing.assert_allclose(longer[:2, 2], [0.5, 1.0])
    np.testing.assert_allclose(longer[:2, :2], [[-9.0, 1.0], [2.0, -9.0]])


def test_without_a_backbone_only_the_memory_reads_the_history(tmp_path):
    config = tiny.run_config(
        model={
            "backbone": "none",
            "adapter": {"kind": "full"},
            "recurrent": {"width": 8},
            "item_head": {"memory": {"enabled": True}},
        }
    )
    model = InfluenceModel.build(config, tiny.small_log()).eval()
    histories = [typed(*SEEN), typed("i1"), typed()]
    batch = collate(model.encoder.encode(histories))
    with torch.no_grad():
        states = model.last_states(batch)
        assert (states == states[0]).all()
        logits = model(batch).item_logits
        assert not torch.allclose(logits[0], logits[2], atol=1e-2)
        model.save_pretrained(tmp_path / "model")
        again = InfluenceModel.from_pretrained(tmp_path / "model")
        torch.testing.assert_close(again(batch).item_logits, logits)
    found = Explainer(model, "leave_one_out").explain(histories[0], "i9")
    assert np.abs(found.values).max() > 0.01
