"""Attention methods, each against its formula written out."""

import networkx
import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    GPTNeoXConfig,
)

from llm_influence.attribution.attention import eager_attention, greatest_flows
from llm_influence.attribution.attention_value_norm import value_norms
from llm_influence.attribution.explainer import Explainer
from llm_influence.errors import ExplanationError, ModelError
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import log_odds
from llm_influence.rendering.encoder import collate
from tests import tiny

ALL = [
    "attention_last",
    "attention_rollout",
    "attention_flow",
    "attention_value_norm",
    "attention_gradient",
    "attention_x_gradient",
]
SHAPE = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
HEADS = {"num_attention_heads": 4, "max_position_embeddings": 128}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}


def other_family(config, folder, **adapter):
    """A tiny model of a family that `tests.tiny` has not."""
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny.backbone_folder("gpt2")).save_pretrained(folder)
    wanted = {"backbone": str(folder), **({"adapter": adapter} if adapter else {})}
    config = tiny.run_config("bert", "token", model=wanted)
    return InfluenceModel.build(config, tiny.small_log()).eval()


def read(model, history):
    """The history's batch and its (heads, T, T) attention weights by layer."""
    batch = collate(model.encoder.encode([history]))
    with torch.no_grad(), eager_attention(model.body):
        found = model.attend(batch, model.embed(batch), output_attentions=True)
    return batch, [layer[0].double().numpy() for layer in found.attentions]


def assert_shares(influence, batch, tokens, tolerance=1e-5):
    """Scores and prompt are the sums of (T,) relevances over their tokens, as shares."""
    owner, tokens = batch.event_index[0].numpy(), tokens / tokens.sum()
    expected = [tokens[owner == event].sum() for event in range(batch.num_events[0])]
    np.testing.assert_allclose(influence.values, expected, atol=tolerance)
    assert influence.prompt_score == pytest.approx(tokens[owner == -1].sum(), abs=tolerance)


def rollout(layers):
    flow = np.eye(len(layers[0]))
    for layer in layers:
        flow = (0.5 * layer + 0.5 * np.eye(len(layer))) @ flow
    return flow[-1]


def test_last_layer_and_rollout_equal_their_formulas(model, log):
    history = model.encoder.trim(log.at(7))
    batch, layers = read(model, history)
    means = [layer.mean(0) for layer in layers]
    explained = Explainer(model, "attention_last").explain(history)
    assert_shares(explained, batch, means[-1][-1])
    explained = Explainer(model, "attention_rollout").explain(history)
    assert_shares(explained, batch, rollout(means))
    assert model.body.config._attn_implementation == "sdpa"


# --- flow -----------------------------------------------------------------------------------


def test_flow_of_a_graph_made_by_hand():
    """Two tokens, one layer: half of the query's state is its own, a quarter attends to each."""
    flows = greatest_flows([np.array([[1.0, 0.0], [0.5, 0.5]])], np.array([-1, 0]), 1)
    np.testing.assert_allclose(flows, [0.25, 0.75])


def test_flows_equal_those_of_networkx():
    draw = np.random.default_rng(0)
    layers = [np.tril(draw.random((7, 7))) for _ in range(3)]
    layers = [layer / layer.sum(axis=1, keepdims=True) for layer in layers]
    owners = np.array([-1, 0, 0, 1, 2, 2, 2])
    graph = networkx.DiGraph()
    for number, layer in enumerate(layers):
        for state, token in zip(*np.nonzero(layer), strict=True):
            weight = (layer[state, token] + (state == token)) / 2
            graph.add_edge((number + 1, state), (number, token), capacity=weight)
    for token, owner in enumerate(owners):
        graph.add_edge((0, token), f"event {owner}", capacity=10.0)
    expected = [networkx.maximum_flow_value(graph, (3, 6), f"event {e}") for e in range(-1, 3)]
    np.testing.assert_allclose(greatest_flows(layers, owners, 3), expected, atol=1e-5)


def test_flow_reads_the_attention_of_the_model(model, log):
    history = model.encoder.trim(log.at(0))
    batch, layers = read(model, history)
    owners = batch.event_index[0].numpy()
    flows = greatest_flows([layer.mean(0) for layer in layers], owners, len(history))
    influence = Explainer(model, "attention_flow").explain(history)
    np.testing.assert_allclose(influence.values, flows[1:] / flows.sum(), atol=1e-5)


# --- norms of values ------------------------------------------------------------------------


def lengths_written_out(kind, model, batch, layers):
    """(T, T) of each layer, from the family's own modules, a head and a pair of tokens a time."""
    backbone, found, inputs = model.backbone.model, [], []
    blocks = {
        "bert": lambda b: [(x.attention.self, x.attention.output.dense) for x in b.encoder.layer],
        "modernbert": lambda b: [(x.attn, x.attn.Wo) for x in b.layers],
        "gpt2": lambda b: [(x.attn, x.attn.c_proj) for x in b.h],
        "llama": lambda b: [(x.self_attn, x.self_attn.o_proj) for x in b.layers],
    }[kind](backbone)
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, named: inputs.append(args[0] if args else named["hidden_states"]),
            with_kwargs=True,
        )
        for block, _ in blocks
    ]
    with torch.no_grad():
        model.attend(batch, model.embed(batch))
    for hook in hooks:
        hook.remove()
    values = {
        "bert": lambda block, x: block.value(x),
        "modernbert": lambda block, x: block.Wqkv(x)[..., 64:],
        "gpt2": lambda block, x: block.c_attn(x)[..., 64:],
        "llama": lambda block, x: block.v_proj(x),
    }[kind]
    for (block, output), weights, x in zip(blocks, layers, inputs, strict=True):
        with torch.no_grad():
            value = values(block, x)[0].unflatten(-1, (-1, 8))  # (T, kv heads, 8)
            carried = torch.zeros(*weights.shape[1:], 32, dtype=torch.double)
            for head, seen in enumerate(weights):
                alone = torch.zeros(len(value), 32)
                alone[:, head * 8 : head * 8 + 8] = value[:, head * value.shape[1] // 4]
                vector = (output(alone) - output(torch.zeros(1, 32))).double()
                carried += torch.from_numpy(seen)[..., None] * vector
        found.append(carried.norm(dim=-1).numpy())
    return found


@pytest.mark.parametrize("kind", tiny.BACKBONES)
def test_value_norms_equal_the_vectors_written_out(log, kind):
    model = tiny.tiny_model(kind, "token", noise=0.2)
    history = model.encoder.trim(log.at(2))
    batch, layers = read(model, history)
    expected = lengths_written_out(kind, model, batch, layers)
    for ours, theirs in zip(value_norms(model, batch), expected, strict=True):
        np.testing.assert_allclose(ours[0].numpy(), theirs, rtol=1e-3, atol=1e-5)
    shares = [layer / layer.sum(axis=1, keepdims=True) for layer in expected]
    rolled = Explainer(model, "attention_value_norm").explain(history)
    assert_shares(rolled, batch, rollout(shares), 1e-4)
    last = Explainer(model, "attention_value_norm", through="last").explain(history)
    assert_shares(last, batch, shares[-1][-1], 1e-4)


@pytest.mark.parametrize("kind", ["ia3", "bottleneck", "adalora", "full"])
def test_value_norms_see_the_values_that_an_adapter_has_changed(log, kind):
    model = InfluenceModel.build(tiny.run_config(model={"adapter": {"kind": kind}}), log).eval()
    batch = collate(model.encoder.encode([log.at(0)]))
    before = value_norms(model, batch)[0]
    changed = [p for n, p in model.body.named_parameters() if "layer.0." in n and p.requires_grad]
    with torch.no_grad():
        for parameter in changed:
            parameter.mul_(1.5).add_(0.01)
    same = torch.allclose(before, value_norms(model, batch)[0])
    assert same is (kind == "bottleneck")  # which stands behind the output map: not linear


def test_attention_of_another_kind_is_refused(log, tmp_path):
    """GPT-NeoX interleaves queries, keys and values head by head."""
    model = other_family(GPTNeoXConfig(**SHAPE, **HEADS), tmp_path, kind="frozen")
    with pytest.raises(ModelError, match=r"gpt_neox.*another sum of values"):
        Explainer(model, "attention_value_norm").explain(log.at(0))
    with pytest.raises(ExplanationError, match=r"through is 'lst'.*'last'"):
        Explainer(model, "attention_value_norm", through="lst").explain(log.at(0))


# --- gradients of attention -----------------------------------------------------------------


def test_attention_gradients_are_what_a_small_change_of_the_weights_does(bert, log, monkeypatch):
    """Scaling the attention to one event's tokens moves f by its score, to first order."""
    history = bert.encoder.trim(log.at(0))
    batch = collate(bert.encoder.encode([history]))
    influence = Explainer(bert, "attention_x_gradient").explain(history, "i7")
    code = torch.tensor([int(bert.catalogue.index(["i7"])[0])])
    softmax = torch.nn.functional.softmax

    def value(event, scale):
        there = torch.where(batch.event_index[0] == event, scale, 1.0)
        monkeypatch.setattr(
            torch.nn.functional, "softmax", lambda x, **how: softmax(x, **how) * there
        )
        with torch.no_grad(), eager_attention(bert.body):
            found = float(log_odds(bert(batch).item_logits, code))
        monkeypatch.undo()
        return found

    step = 1e-2
    for event in range(len(history)):
        slope = (value(event, 1 + step) - value(event, 1 - step)) / (2 * step)
        assert influence.values[event] == pytest.approx(slope, abs=5e-3)


def test_positive_relevance_of_one_layer_is_the_positive_part_of_weight_times_gradient(log):
    config = tiny.run_config("llama", model={"layers": 1})
    model = InfluenceModel.build(config, log).eval()
    batch = collate(model.encoder.encode([log.at(0)]))
    code = torch.tensor([int(model.catalogue.index(["i7"])[0])])
    with eager_attention(model.body):
        vectors = model.embed(batch).detach().requires_grad_()
        output = model.attend(batch, vectors, output_attentions=True)
        logits = model.heads(QueryState(output.last_hidden_state[:, -1])).item_logits
        (layer,) = output.attentions
        (slope,) = torch.autograd.grad(log_odds(logits, code).sum(), [layer])
    expected = (layer * slope).clamp(min=0).mean(1)[0, -1].detach().numpy()
    influence = Explainer(model, "attention_gradient").explain(log.at(0), "i7")
    assert_shares(influence, batch, expected, 1e-4)


@pytest.mark.parametrize("method", ALL)
def test_a_backbone_without_attention_weights_is_named(bert, log, monkeypatch, method):
    attend = bert.attend

    def silent(batch, vectors, **options):
        found = attend(batch, vectors, **options)
        found.attentions = None
        return found

    monkeypatch.setattr(bert, "attend", silent)
    with pytest.raises(ModelError, match=r"no attention weights.*weights of 2 layers"):
        Explainer(bert, method).explain(log.at(0), "i7")
    assert bert.body.config._attn_implementation == "sdpa"
