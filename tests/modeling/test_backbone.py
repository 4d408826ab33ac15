"""Backbones and the adapters on them."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModel,
    AutoTokenizer,
    BartConfig,
    BartModel,
    ConvBertConfig,
    DebertaV2Config,
    FNetConfig,
    MistralConfig,
    RobertaConfig,
)

from llm_influence.errors import ModelError
from llm_influence.modeling.backbone import inference, load_backbone
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import EncodedBatch
from tests import tiny

KINDS = {"bert": "encoder", "modernbert": "encoder", "gpt2": "decoder", "llama": "decoder"}


@pytest.fixture(params=tiny.BACKBONES)
def kind(request):
    return request.param


def test_a_backbone_knows_its_direction_width_and_context(kind):
    backbone = load_backbone(tiny.backbone_folder(kind))
    assert (backbone.kind, backbone.width, backbone.context) == (KINDS[kind], 32, 128)
    assert backbone.model.dtype == torch.float32
    assert not backbone.model.training


def test_the_first_layers_alone_are_kept(kind):
    source = tiny.backbone_folder(kind)
    whole, short = load_backbone(source).model, load_backbone(source, layers=1).model
    kept = short.state_dict()
    assert len(kept) < len(whole.state_dict())
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, whole.state_dict()[name])
    with pytest.raises(ModelError, match=r"model\.layers = 3.*2 layers"):
        load_backbone(source, layers=3)


def test_one_dropout_overrides_those_of_hidden_states_and_ends_those_of_attention(kind):
    model = load_backbone(tiny.backbone_folder(kind), dropout=0.31).model
    found = {name: m.p for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    weights = {name for name in found if name.endswith(("self.dropout", "attn_dropout"))}
    assert all(found[name] == 0 for name in weights)
    assert {found[name] for name in found.keys() - weights} == (
        {0.31} if kind != "llama" else set()
    )
    assert getattr(model.config, "attention_dropout", 0.0) == 0


@pytest.mark.parametrize("source", ["no/such-model", "./no-such-folder"])
def test_an_unknown_backbone_is_named(source):
    with pytest.raises(ModelError, match=source) as raised:
        load_backbone(source)
    assert "minilm" in str(raised.value)


def test_an_encoder_decoder_is_refused(tmp_path):
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 50}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    wide = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32}
    BartModel(BartConfig(**shape, **heads, **wide)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny.backbone_folder("gpt2")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="encoder-decoder"):
        load_backbone(str(tmp_path))


def test_lora_trains_updates_alone_and_can_be_switched_off(kind, log):
    model = tiny.tiny_model(kind)
    trained = {name for name, p in model.body.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("pooler" in name for name in trained)
    plain = InfluenceModel.build(tiny.run_config(kind), log).eval()  # its update is zero
    ids = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))

    def states(body):
        with torch.no_grad():
            return body(inputs_embeds=ids).last_hidden_state

    with model.adapter.off():
        torch.testing.assert_close(states(model.body), states(plain.body), rtol=0, atol=1e-5)
    assert not torch.allclose(states(model.body), states(plain.body), atol=1e-2)


def test_a_frozen_backbone_has_heads_to_train_alone(kind, log):
    config = tiny.run_config(kind, model={"adapter": {"kind": "frozen"}})
    model = InfluenceModel.build(config, log)
    assert not isinstance(model.body, PeftModel)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"embeddings", "item_head", "behavior_head"}
    with model.adapter.off():
        assert len(model.recommend(log.at(0), k=2)) == 2


def test_targets_that_match_nothing_are_refused(log):
    config = tiny.run_config(model={"adapter": {"targets": ["no_such_layer"]}})
    with pytest.raises(ModelError, match=r"model\.adapter\.targets: No modules"):
        InfluenceModel.build(config, log)


SHAPE = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
HEADS = {"num_attention_heads": 4}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}


def saved(config, folder):
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny.backbone_folder("gpt2")).save_pretrained(folder)
    return {"model": {"backbone": str(folder)}}


@pytest.mark.parametrize("style", ["token", "text"])
@pytest.mark.parametrize(
    "config",
    [
        RobertaConfig(**SHAPE, **HEADS, max_position_embeddings=66),
        DebertaV2Config(**SHAPE, **HEADS, **RELATIVE, max_position_embeddings=64),
        MistralConfig(
            **SHAPE, **HEADS, num_key_value_heads=2, max_position_embeddings=64, sliding_window=8
        ),
    ],
    ids=["roberta", "deberta-v2", "mistral"],
)
def test_other_families_fill_their_whole_context(log, tmp_path, config, style):
    model = InfluenceModel.build(tiny.run_config("bert", style, **saved(config, tmp_path)), log)
    assert model.backbone.context == 64
    whole = torch.ones(1, 64, dtype=torch.long)
    places = torch.arange(64)[None]
    nothing, events = torch.empty(1, 64, 0, dtype=torch.long), torch.tensor([63])
    batch = EncodedBatch(
        whole, whole.bool(), places - 1, whole, nothing, places, events, events, nothing, events
    )
    cut = {
        name: getattr(batch, name)[:, :20]
        for name in ("input_ids", "attention_mask", "event_index", "field_index", "added_ids")
    }
    with inference(model):
        states, alone = model.states(batch), model.states(replace(batch, **cut))
    torch.testing.assert_close(states[:, :20], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        FNetConfig(**SHAPE, max_position_embeddings=64),
        ConvBertConfig(**SHAPE, **HEADS, embedding_size=32, max_position_embeddings=64),
    ],
    ids=["fnet", "convbert"],
)
def test_a_backbone_that_sees_the_future_is_refused(log, tmp_path, config):
    frozen = saved(config, tmp_path)["model"] | {"adapter": {"kind": "frozen"}}
    with pytest.raises(
        ModelError, match=r"(?i)depend on later events.*docs/how-to/choose_a_backbone"
    ):
        InfluenceModel.build(tiny.run_config("bert", "token", model=frozen), log)
