"""What a state may depend on: its own past, never the future, the padding or the neighbours."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_influence.attribution.attention import eager_attention
from llm_influence.modeling.backbone import event_causal_mask, inference
from llm_influence.rendering.encoder import collate
from tests import tiny

CLOSE = {"rtol": 0, "atol": 1e-5}


def batch_of(model, histories):
    return collate(model.encoder.encode(histories))


def states_of(model, batch):
    with inference(model):
        return model.states(batch)


@pytest.fixture
def history(any_model, log):
    return any_model.encoder.trim(log.at(7))  # 4 to 6 events: all fit


def removed(history):
    """Every event kept but the second and the last."""
    kept = torch.ones(1, len(history), dtype=torch.bool)
    kept[0, [1, -1]] = False
    return kept


def test_a_state_equals_that_of_the_history_cut_there(any_model, history):
    batch = batch_of(any_model, [history])
    whole = states_of(any_model, batch)[0]
    for events in range(len(history) + 1):
        cut = batch_of(any_model, [history.keep(slice(events))])
        state = states_of(any_model, cut)[0, cut.last()[0]]
        torch.testing.assert_close(whole[batch.ends[0, events]], state, **CLOSE)


def test_another_future_changes_no_state_before_it(any_model, history, log):
    now = 2
    order = np.r_[:now, len(history) - 1 : now - 1 : -1]
    shuffled = replace(
        history,
        items=history.items[order],
        behaviors=history.behaviors[order],
        values=history.values[order],
    )
    batches = [batch_of(any_model, [h]) for h in (history, shuffled)]
    first, second = (states_of(any_model, batch)[0] for batch in batches)
    stop = int(batches[0].ends[0, now]) + 1
    torch.testing.assert_close(first[:stop], second[:stop], **CLOSE)
    assert not torch.allclose(first[batches[0].last()[0]], second[batches[1].last()[0]], atol=1e-3)


def test_padding_and_neighbours_change_nothing(any_model, log):
    histories = [log.at(row) for row in (0, 3, 9)]  # of different lengths
    together = batch_of(any_model, histories)
    states = states_of(any_model, together)
    for row, history in enumerate(histories):
        alone = batch_of(any_model, [history])
        length = alone.input_ids.shape[1]
        torch.testing.assert_close(states[row, :length], states_of(any_model, alone)[0], **CLOSE)


def test_what_stands_at_a_hidden_token_has_no_effect(any_model, history):
    batch = batch_of(any_model, [history])
    hidden = batch.hide(removed(history))
    other = replace(
        hidden, input_ids=torch.where(hidden.attention_mask, hidden.input_ids, hidden.input_ids - 1)
    )
    assert not torch.equal(other.input_ids, hidden.input_ids)
    visible = hidden.attention_mask[0]
    first, second = (
        states_of(any_model, hidden)[0, visible],
        states_of(any_model, other)[0, visible],
    )
    torch.testing.assert_close(first, second, **CLOSE)


def test_kept_tokens_keep_their_positions_when_others_are_hidden(model, log):
    history = model.encoder.trim(log.at(7))
    batch = batch_of(model, [history])
    hidden = batch.hide(removed(history))
    places = hidden.attention_mask[0].nonzero()[:, 0]
    short = replace(
        batch,
        input_ids=batch.input_ids[:, places],
        attention_mask=batch.attention_mask[:, places],
        event_index=batch.event_index[:, places],
        added_ids=batch.added_ids[:, places],
    )
    mask = event_causal_mask(short) if model.backbone.kind == "encoder" else None
    if model.backbone.model.config.model_type == "modernbert":  # its window is one of places
        near = (places[:, None] - places).abs() <= 4
        mask = {"full_attention": mask, "sliding_attention": mask & near}
    with inference(model):
        expected = model.body(
            inputs_embeds=model.embed(short),
            attention_mask=mask,
            position_ids=places[None],
        ).last_hidden_state[0]
    torch.testing.assert_close(states_of(model, hidden)[0, places], expected, **CLOSE)
    moved = states_of(model, short)[0, -1]
    assert not torch.allclose(moved, expected[-1], atol=1e-4)


def test_a_local_layer_sees_its_window_and_no_further(log):
    """The mask that we give is the one that ModernBERT makes itself, cut at the present."""
    model = tiny.tiny_model("modernbert", "token")
    assert set(model.body.config.layer_types) == {"full_attention", "sliding_attention"}
    model.body.config.layer_types = ["sliding_attention"] * 2
    for layer in model.backbone.model.layers:
        layer.attention_type = "sliding_attention"
    batch = batch_of(model, [model.encoder.trim(log.at(7))])
    vectors = model.embed(batch).detach()
    far, near = vectors.clone(), vectors.clone()
    last = vectors.shape[1] - 1
    far[0, : last - 2 * 4] = 7.0  # two layers of four tokens each
    near[0, last - 2 * 4] = 7.0
    with inference(model):
        own, away, beside = (model.states(batch, v)[0, last] for v in (vectors, far, near))
    assert torch.equal(own, away)
    assert not torch.allclose(own, beside, atol=1e-4)


def test_eager_and_fused_attention_agree(model, log):
    batch = batch_of(model, [log.at(0), log.at(3)])
    hidden = batch.hide(torch.arange(int(batch.num_events.max())).expand(2, -1) % 3 != 1)
    assert model.body.config._attn_implementation == "sdpa"
    for case in (batch, hidden):
        fused = states_of(model, case)
        with eager_attention(model.body):
            assert model.body.config._attn_implementation == "eager"
            eager = states_of(model, case)
        real = case.attention_mask
        torch.testing.assert_close(fused[real], eager[real], **CLOSE)
    assert model.body.config._attn_implementation == "sdpa"
