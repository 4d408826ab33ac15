"""Every kind of adapter: what it trains, that it can be switched off, and that it comes back."""

import json
import shutil
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_influence.config.model import ADAPTER_OPTIONS, AdapterConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.errors import ConfigError, ModelError, ModelFolderError
from llm_influence.modeling.adapters import KINDS, attach_adapter
from llm_influence.modeling.backbone import load_backbone
from llm_influence.modeling.layers import layer_places, linear_maps
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.saving import restore_weights
from llm_influence.training.batches import WindowCollator, WindowDataset
from llm_influence.training.objective import NextEventObjective
from tests import tiny

FAMILIES = tiny.BACKBONES
OPTIONS = {"lora": {"rank": 4}, "adalora": {"rank": 2}, "bottleneck": {"width": 8}}
IN_FOLDER = [kind for kind, adapter in KINDS.items() if adapter.saved_in == "adapter"]

OUTPUTS = {  # of the last layer: attention, feed-forward
    "bert": ("encoder.layer.1.attention.output.dense", "encoder.layer.1.output.dense"),
    "gpt2": ("h.1.attn.c_proj", "h.1.mlp.c_proj"),
    "llama": ("layers.1.self_attn.o_proj", "layers.1.mlp.down_proj"),
    "modernbert": ("layers.1.attn.Wo", "layers.1.mlp.Wo"),
}
IA3_SIZES = {  # trained numbers a layer: keys, values (or all three in one), wide activations
    "bert": 32 + 32 + 48,
    "gpt2": 3 * 32 + 4 * 32,
    "llama": 16 + 16 + 48,
    "modernbert": 3 * 32 + 48,
}

every_kind = pytest.mark.parametrize("kind", KINDS)
every_family = pytest.mark.parametrize("family", FAMILIES)


def built(kind: str, family: str = "bert", style: str = "token", **options) -> InfluenceModel:
    adapter = {"kind": kind, **OPTIONS.get(kind, {}), **options}
    model = {"backbone": tiny.backbone_folder(family), "adapter": adapter, "dropout": 0.0}
    return InfluenceModel.build(tiny.run_config(family, style, model=model), tiny.small_log())


def trained(kind: str, family: str = "bert", style: str = "token", steps: int = 3):
    """A model after a few steps, large enough to be seen."""
    model, log = built(kind, family, style), tiny.small_log()
    objective = NextEventObjective(model).train()
    windows = WindowDataset(log, model.encoder)
    inputs = WindowCollator(log, model.encoder)([windows[n] for n in range(4)])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(**inputs)["loss"].backward()
        assert all(p.grad is not None for p in parameters)  # or processes would wait for ever
        optimizer.step()
    return model.eval()


def logits_of(model, log):
    return torch.cat([p.item_logits for _, p in model.predict(list(log))])


def states_of(model):
    vectors = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.body(inputs_embeds=vectors).last_hidden_state


# --- what is trained -----------------------------------------------------------------------


def test_kinds_are_those_of_the_configuration():
    assert KINDS.keys() == ADAPTER_OPTIONS.keys()
    assert set(get_args(AdapterConfig.model_fields["kind"].annotation)) == KINDS.keys()


@every_family
@every_kind
def test_a_fresh_adapter_changes_nothing_and_a_trained_one_can_be_switched_off(kind, family):
    plain = states_of(built("frozen", family).eval())
    torch.testing.assert_close(states_of(built(kind, family).eval()), plain, rtol=0, atol=1e-5)
    model = trained(kind, family)
    if kind != "frozen":
        assert (states_of(model) - plain).abs().max() > 1e-4
    if kind == "full":
        with pytest.raises(ModelError, match=r"adapter\.kind = 'full': .*no untuned one left"):
            model.adapter.off()
    else:
        with model.adapter.off():
            torch.testing.assert_close(states_of(model), plain, rtol=0, atol=1e-5)


@every_kind
def test_new_items_get_their_vectors_from_the_untuned_backbone(kind, log):
    model = trained(kind)
    items = Catalogue.from_ids(["new lamp"])
    if kind == "full":
        with pytest.raises(ModelError, match="no untuned one"):
            model.add_items(items)
        return
    model.add_items(items)
    fresh = built("frozen")
    fresh.add_items(items)
    torch.testing.assert_close(
        model.embeddings.words[-1], fresh.embeddings.words[-1], rtol=0, atol=1e-5
    )


@every_family
def test_bottlenecks_follow_both_output_projections_of_every_layer(family):
    model = built("bottleneck", family, width=8)
    places = [name.partition(".bottleneck.")[0] for name in model.adapter.state()]
    assert len(set(places)) == 2 * 2
    assert set(OUTPUTS[family]) < set(places)
    trained = [p for p in model.body.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 4 * (2 * 32 * 8 + 8 + 32)


@every_family
def test_ia3_scales_keys_values_and_wide_activations(family):
    model = built("ia3", family)
    scales = [p for p in model.body.parameters() if p.requires_grad]
    assert all((p == 1).all() for p in scales)
    assert sum(p.numel() for p in scales) == 2 * IA3_SIZES[family]
    attention, wide = OUTPUTS[family]
    names = {
        name.partition(".ia3_l")[0].removeprefix("base_model.model.")
        for name in model.adapter.state()
    }
    assert wide in names
    assert attention not in names
    assert not any("query" in name or "q_proj" in name for name in names)


@pytest.mark.parametrize(("style", "embedded"), [("token", False), ("text", True)])
def test_full_trains_all_that_a_state_passes_through(style, embedded):
    body = built("full", style=style).body
    still = {name for name, p in body.named_parameters() if not p.requires_grad}
    assert any("pooler" in name for name in still)
    assert ("embeddings.word_embeddings.weight" in still) is not embedded
    assert all("pooler" in name or "word_embeddings" in name for name in still)


@pytest.mark.parametrize("kind", ["lora", "adalora", "ia3", "bottleneck"])
@pytest.mark.parametrize("targets", [["output.dense"], r".*\.output\.dense"])
def test_targets_name_other_places(kind, targets):
    state = built(kind, targets=targets).adapter.state()
    assert state
    assert all(".output.dense." in name for name in state)
    with pytest.raises(ModelError, match=r"model\.adapter\.targets: No modules"):
        built(kind, targets=["no_such"])


def test_a_backbone_built_otherwise_is_refused_with_what_can_be_done():
    model = load_backbone(tiny.backbone_folder("bert")).model
    assert len(layer_places(model)) == 2
    for name in [name for name in linear_maps(model) if "layer.1.attention" in name]:
        model.set_submodule(name, torch.nn.Identity())
    for kind in ("ia3", "bottleneck"):
        with pytest.raises(ModelError, match=r"layer 1 has .*name the modules in model.adapter"):
            attach_adapter(model, AdapterConfig(kind=kind))


# --- on disk -------------------------------------------------------------------------------


@every_family
@every_kind
def test_what_was_trained_is_saved_and_predicts_the_same(kind, family, log, tmp_path):
    model, fresh = trained(kind, family), built(kind, family)
    before, after = fresh.adapter.state(), model.adapter.state()
    assert before.keys() == after.keys()
    still = {name for name in after if torch.equal(before[name], after[name])}
    assert all(any(part in name for part in ("pooler", "embed", "wte")) for name in still)
    assert bool(after) is (kind != "frozen")
    expected = logits_of(model, log)
    assert not torch.allclose(logits_of(fresh.eval(), log), expected, atol=1e-2)
    for with_backbone in (True, False):
        folder = tmp_path / str(with_backbone)
        model.save_pretrained(folder, with_backbone=with_backbone)
        loaded = InfluenceModel.from_pretrained(folder)
        torch.testing.assert_close(logits_of(loaded, log), expected, rtol=0, atol=1e-6)
        assert [n for n, p in loaded.named_parameters() if p.requires_grad] == [
            n for n, p in model.named_parameters() if p.requires_grad
        ]
        restore_weights(fresh.parts, folder)
        torch.testing.assert_close(logits_of(fresh, log), expected, rtol=0, atol=1e-6)
    adapter = tmp_path / "True" / "adapter" / "adapter_model.safetensors"
    assert adapter.is_file() is (kind in IN_FOLDER)


@pytest.mark.parametrize("kind", IN_FOLDER)
def test_the_backbone_beside_an_adapter_is_the_untuned_one(kind, tmp_path):
    trained(kind).save_pretrained(tmp_path)
    own = load_backbone(str(tmp_path / "backbone"), complete=True).model.state_dict()
    source = load_backbone(tiny.backbone_folder("bert")).model.state_dict()
    assert own.keys() == source.keys()
    for name, tensor in source.items():
        torch.testing.assert_close(own[name], tensor, rtol=0, atol=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        built(kind).save_pretrained(place / kind)
    return place


@pytest.mark.parametrize("kind", IN_FOLDER)
def test_a_lacking_adapter_key_is_named(kind, folders, tmp_path):
    folder = shutil.copytree(folders / kind, tmp_path / kind)
    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    key = sorted(tensors)[1]
    del tensors[key]
    save_file(tensors, path)
    named = rf"adapter_model\.safetensors: lacks {key}"
    with pytest.raises(ModelFolderError, match=named):
        InfluenceModel.from_pretrained(folder)
    with pytest.raises(ModelFolderError, match=named):
        restore_weights(built(kind).parts, folder)


def test_a_bottleneck_of_another_width_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders / "bottleneck", tmp_path / "copy")
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"width": 5}))
    with pytest.raises(ModelFolderError, match=r"(?s)adapter_model\.safetensors: .*size mismatch"):
        InfluenceModel.from_pretrained(folder)


@pytest.mark.parametrize("damage", ["a weight", "the folder"])
def test_a_tuned_backbone_has_to_be_there_whole(damage, folders, tmp_path):
    folder = shutil.copytree(folders / "full", tmp_path / "copy")
    path, weight = folder / "backbone" / "model.safetensors", "encoder.layer.1.output.dense.bias"
    named = r"backbone.*cannot be loaded"
    if damage == "the folder":
        shutil.rmtree(path.parent)
    else:
        tensors = load_file(path)
        del tensors[weight]
        save_file(tensors, path, metadata={"format": "pt"})
        named = rf"backbone.*lacks {weight}"
    with pytest.raises(ModelFolderError, match=named):
        InfluenceModel.from_pretrained(folder)
    with pytest.raises(ModelFolderError, match=named):
        restore_weights(built("full").parts, folder)


# --- options of PEFT ---------------------------------------------------------------------------


def test_more_options_reach_peft(tmp_path):
    options = {"init_lora_weights": "gaussian", "layers_to_transform": [1]}
    model = built("lora", targets=["output.dense"], peft=options)
    assert all(".layer.1." in name for name in model.adapter.state())
    assert model.adapter.peft_config.init_lora_weights == "gaussian"
    model.save_pretrained(tmp_path)
    loaded = InfluenceModel.from_pretrained(tmp_path)
    assert loaded.config.adapter.peft == options
    assert loaded.adapter.state().keys() == model.adapter.state().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers_to_transfrom": [1]}, r"adapter\.peft\.layers_to_transfrom: .*mean 'layers_to_t"),
        ({"r": 8}, r"adapter\.peft\.r: unknown or reserved LoraConfig option 'r'"),
        ({"use_dora": True, "bias": "none"}, r"adapter\.peft\.use_dora"),
    ],
)
def test_wrong_options_of_peft_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        built("lora", peft=options)


def test_a_start_that_changes_the_backbone_is_refused():
    with pytest.raises(ValueError, match="'pissa' changes the backbone"):
        AdapterConfig(kind="lora", peft={"init_lora_weights": "pissa"})


def test_kinds_without_peft_refuse_its_options():
    with pytest.raises(ValueError, match="no peft: an adapter of kind 'bottleneck'"):
        AdapterConfig(kind="bottleneck", peft={"bias": "none"})
