"""Recurrent backbones: what they compute, in closed form, and what they refuse."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from llm_influence.config.model import RECURRENT
from llm_influence.data.catalogue import Catalogue
from llm_influence.errors import ConfigError, ModelError
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.embeddings import text_vectors
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.recurrent import RecurrentCache, RecurrentModel, RecurrentShape
from llm_influence.rendering.encoder import collate
from tests import tiny

KINDS = pytest.mark.parametrize(("kind", "style"), tiny.CELLS)


@pytest.fixture(scope="module")
def recurrence():
    return tiny.tiny_model("recurrence", "token")


def body_of(kind, layers=1):
    torch.manual_seed(0)
    shape = RecurrentShape(cell=kind, hidden_size=6, input_size=5, num_hidden_layers=layers)
    return RecurrentModel(shape).eval()


def holes(rows, tokens):
    """Visible tokens with holes, none at all in the first row, all in the second."""
    seen = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(1)) < 0.6
    seen[0], seen[1] = False, True
    return seen


# --- the cells -----------------------------------------------------------------------------


def test_the_state_of_the_recurrence_is_a_sum_over_its_gates():
    """``y_T = y_0 g_1..g_T + b (1 + g_T + g_T g_{T-1} + ...)``, by the formula alone."""
    cell = body_of("recurrence").cell
    torch.nn.init.normal_(cell.first)
    h = torch.randn(7, 5)
    before = torch.cat([torch.zeros(1, 5), h[:-1]])
    gates = 1 / (1 + torch.exp(-(h @ cell.now.weight.T + before @ cell.before.weight.T)))
    expected = cell.first * gates.prod(dim=0)
    for step in range(7):
        expected = expected + cell.bias * gates[step + 1 :].prod(dim=0)
    states, _ = cell(h[None])
    torch.testing.assert_close(states[0, -1], expected)
    torch.testing.assert_close(cell.gates(h[None])[0], gates)


@pytest.mark.parametrize(("kind", "layers"), [("gru", 1), ("gru", 2), ("lstm", 2)])
def test_states_are_those_of_torch_on_the_visible_tokens_alone(kind, layers):
    body, vectors, seen = body_of(kind, layers), torch.randn(4, 9, 5), holes(4, 9)
    states = body(vectors, seen).last_hidden_state
    for row in range(4):
        alone, _ = body.cell(vectors[row, seen[row]][None]) if seen[row].any() else (None, None)
        read = 0
        for token in range(9):
            read += int(seen[row, token])
            expected = alone[0, read - 1] if read else torch.zeros(6)
            torch.testing.assert_close(states[row, token], expected)


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_hidden_token_leaves_the_state_untouched_and_gets_no_gradient(kind):
    body, seen = body_of(kind), holes(3, 8)
    vectors = torch.randn(3, 8, 5, requires_grad=True)
    states = body(vectors, seen).last_hidden_state
    start = states[0, 0]
    torch.testing.assert_close(states[0], start.expand(8, -1))
    stays = states[:, 1:] == states[:, :-1]
    assert torch.equal(stays.all(dim=-1), ~seen[:, 1:])
    states.square().sum().backward()
    assert torch.equal(vectors.grad.abs().sum(dim=-1) > 0, seen)


def test_a_state_is_kept_only_of_tokens_that_are_all_there():
    with pytest.raises(ValueError, match="hidden tokens"):
        body_of("gru")(torch.randn(3, 8, 5), holes(3, 8), RecurrentCache())


def test_states_are_float32_where_a_run_computes_in_bf16():
    body, vectors = body_of("gru"), torch.randn(2, 4, 5)
    seen = torch.ones(2, 4, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        low = body(vectors.bfloat16(), seen).last_hidden_state
    exact = body(vectors.bfloat16().float(), seen).last_hidden_state
    assert torch.equal(low, exact)


# --- gates of events -----------------------------------------------------------------------


def test_the_gate_of_an_event_is_what_is_left_of_whatever_stood_before_it(recurrence, log):
    """Move y_0: after each event the difference is the one before it times the event's gate."""
    history = recurrence.encoder.trim(log["u3"])  # template full: four tokens an event
    batch = collate(recurrence.encoder.encode([history]))
    cell = recurrence.backbone.model.cell
    with inference(recurrence):
        first = recurrence.states(batch)
        held, cell.first.data = cell.first.data, cell.first.data + 100.0
        try:
            moved = recurrence.states(batch) - first
        finally:
            cell.first.data = held
    at_ends = moved[0, batch.ends[0]]  # after the prompt and after each event
    gates = recurrence.gates(history)
    assert gates.shape == (len(history), 32)
    expected = at_ends[0]
    for event, gate in enumerate(gates):
        expected = expected * gate
        torch.testing.assert_close(at_ends[event + 1], expected, rtol=1e-3, atol=1e-4)
    assert gates.min() > 0
    assert gates.max() < 1
    assert gates.std() > 1e-3


def test_gates_are_those_of_the_events_that_fit_whoever_stands_beside_them(recurrence, log):
    long, short = log["u7"], log["u0"]
    fitting = recurrence.encoder.trim(long)
    assert len(fitting) < len(long)
    batch = collate(recurrence.encoder.encode([short, fitting]))
    together = recurrence.event_gates(batch)
    torch.testing.assert_close(recurrence.gates(long), together[1, : len(fitting)])
    torch.testing.assert_close(recurrence.gates(short), together[0, : len(short)])
    assert recurrence.gates(short.keep(slice(0, 0))).shape == (0, 32)


def test_other_backbones_have_no_gates(log):
    for kind in ("gru", "bert"):
        with pytest.raises(ModelError, match=r"has no gates.*backbone 'recurrence'"):
            tiny.tiny_model(kind).gates(log.at(0))


# --- the model around them -----------------------------------------------------------------


@KINDS
def test_a_saved_model_predicts_the_same_and_needs_no_other_place(kind, style, log, tmp_path):
    model = tiny.tiny_model(kind, style)
    model.save_pretrained(tmp_path / "m", with_backbone=False)
    loaded = InfluenceModel.from_pretrained(tmp_path / "m")
    (_, ours), *_ = model.predict(list(log))
    (_, theirs), *_ = loaded.predict(list(log))
    torch.testing.assert_close(theirs.item_logits, ours.item_logits)
    torch.testing.assert_close(theirs.behavior_logits, ours.behavior_logits)
    assert loaded.config == model.config
    assert loaded.backbone.source == kind
    assert loaded.backbone.kind == "recurrent"


def test_without_words_items_start_apart_and_the_words_of_the_template_near_nothing(log):
    embeddings = InfluenceModel.build(tiny.run_config("gru"), log).embeddings
    vectors = embeddings(slice(None)).detach()
    assert not embeddings.has_words
    others = vectors[: embeddings.first_item].norm(dim=-1)
    assert 0 < others.min() < others.max() < 0.02
    items = nn.functional.normalize(vectors[embeddings.first_item :], dim=-1)
    assert vectors[embeddings.first_item :].norm(dim=-1).mean() == pytest.approx(1, abs=0.1)
    assert (items @ items.T - torch.eye(len(items))).abs().max() < 0.8


def test_named_words_give_items_their_texts(log):
    config = tiny.run_config("gru")
    words = config.model.recurrent.model_copy(update={"words": tiny.backbone_folder("bert")})
    other = config.model.model_copy(update={"recurrent": words})
    embeddings = InfluenceModel.build(config.model_copy(update={"model": other}), log).embeddings
    bert = InfluenceModel.build(tiny.run_config("bert"), log).embeddings
    torch.testing.assert_close(embeddings.words, bert.words)
    assert (embeddings.residual == 0).all()


def test_what_has_no_text_is_refused(log):
    with pytest.raises(ConfigError, match=r"style 'text' with backbone 'gru'.*recurrent\.words"):
        InfluenceModel.build(
            tiny.run_config("gru", "text", model={"recurrent": {"width": 32}}), log
        )
    model = tiny.tiny_model("gru")
    with pytest.raises(ModelError, match="no untuned one left"):
        model.add_items(Catalogue.from_ids(["new"]))
    with pytest.raises(ModelError, match="'gru' cannot read texts"):
        text_vectors(replace(model.backbone), ["red lamp"])
