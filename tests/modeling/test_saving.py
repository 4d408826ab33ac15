"""A model on disk: what is written comes back, what is damaged is named."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_influence.config.run import RunConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.errors import ModelFolderError, OutputError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.saving import restore_weights
from tests import tiny


def logits_of(model, log):
    return torch.cat([p.item_logits for _, p in model.predict(list(log))])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    tiny.tiny_model("bert", "token").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.mark.parametrize("with_backbone", [True, False])
def test_a_saved_model_predicts_the_same(model, log, tmp_path, with_backbone):
    model.protocol = {"seed": 3}
    model.save_pretrained(tmp_path / "m", with_backbone=with_backbone)
    assert (tmp_path / "m" / "backbone").is_dir() is with_backbone
    loaded = InfluenceModel.from_pretrained(tmp_path / "m")
    torch.testing.assert_close(logits_of(loaded, log), logits_of(model, log), rtol=0, atol=1e-5)
    assert loaded.config == model.config
    assert loaded.protocol == {"seed": 3}
    assert not loaded.training
    behaviors = [
        torch.cat([p.behavior_logits for _, p in m.predict(list(log))]) for m in (loaded, model)
    ]
    torch.testing.assert_close(*behaviors, rtol=0, atol=1e-5)


def test_a_folder_with_its_backbone_needs_no_other_place(log, tmp_path):
    source = shutil.copytree(tiny.backbone_folder("gpt2"), tmp_path / "source")
    config = tiny.run_config(
        "gpt2", model={"backbone": str(source), "layers": 1, "dropout": 0.2, "adapter": {"rank": 2}}
    )
    model = InfluenceModel.build(config, log)
    model.save_pretrained(tmp_path / "own")
    model.save_pretrained(tmp_path / "lean", with_backbone=False)
    expected = logits_of(model, log)
    lean = InfluenceModel.from_pretrained(tmp_path / "lean")
    torch.testing.assert_close(logits_of(lean, log), expected, rtol=0, atol=1e-5)
    shutil.rmtree(source)
    own = InfluenceModel.from_pretrained(tmp_path / "own")
    torch.testing.assert_close(logits_of(own, log), expected, rtol=0, atol=1e-5)
    for loaded in (lean, own):
        assert loaded.backbone.source == str(source)
        assert loaded.backbone.model.config.resid_pdrop == 0.2
        assert loaded.backbone.model.config.num_hidden_layers == 1


def test_a_merged_adapter_predicts_the_same(model, log, tmp_path):
    model.save_pretrained(tmp_path)
    merged = InfluenceModel.from_pretrained(tmp_path)
    merged.body = merged.body.merge_and_unload()
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits_of(merged, log), logits_of(model, log), rtol=0, atol=1e-4)


def test_a_frozen_model_and_one_with_added_items_come_back(log, tmp_path):
    config = tiny.run_config("llama", model={"adapter": {"kind": "frozen"}})
    model = InfluenceModel.build(config, log).eval()
    model.add_items(Catalogue.from_ids(["new lamp"]))
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter").exists()
    loaded = InfluenceModel.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(loaded, log), logits_of(model, log), rtol=0, atol=1e-5)
    assert loaded.catalogue.ids.to_pylist()[-1] == "new lamp"


def test_a_model_with_narrow_residuals_comes_back(log, tmp_path):
    model = InfluenceModel.build(
        tiny.run_config("bert", model={"item_head": {"residual_rank": 3}}), log
    ).eval()
    with torch.no_grad():
        model.embeddings.residual += torch.arange(3)
    model.save_pretrained(tmp_path)
    loaded = InfluenceModel.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(loaded, log), logits_of(model, log), rtol=0, atol=1e-5)
    assert loaded.embeddings.residual.shape == (len(model.embeddings), 3)
    restore_weights(model.parts, tmp_path)


def test_restored_weights_undo_what_training_did_since(log, tmp_path):
    model = tiny.tiny_model("llama", "token")
    model.save_pretrained(tmp_path, with_backbone=False)
    expected = logits_of(model, log)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    assert not torch.allclose(logits_of(model, log), expected, atol=1e-2)
    restore_weights(model.parts, tmp_path)
    torch.testing.assert_close(logits_of(model, log), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("heads.safetensors", "embeddings.words"),
        ("heads.safetensors", "embeddings.residual"),
        ("heads.safetensors", "item_head.log_scale"),
        ("heads.safetensors", "behavior_head.bias"),
        ("adapter/adapter_model.safetensors", None),
    ],
)
def test_a_lacking_key_is_named(folder, file, key):
    tensors = load_file(folder / file)
    key = key or sorted(tensors)[1]
    del tensors[key]
    save_file(tensors, folder / file)
    with pytest.raises(ModelFolderError) as raised:
        InfluenceModel.from_pretrained(folder)
    assert key in str(raised.value)
    assert file in str(raised.value)


@pytest.mark.parametrize(
    "file",
    [
        "model.json",
        "catalogue.parquet",
        "heads.safetensors",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "backbone/model.safetensors",
        "backbone/config.json",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_missing_or_damaged_file_is_named(folder, file, damage):
    path = folder / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelFolderError) as raised:
        InfluenceModel.from_pretrained(folder)
    assert file.split("/")[0] in str(raised.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelFolderError, match="nowhere"):
        InfluenceModel.from_pretrained(tmp_path / "nowhere")


def test_another_format_is_refused(folder):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ModelFolderError, match=r"format 99.*Expected format 1"):
        InfluenceModel.from_pretrained(folder)
    path.write_text("[]")
    with pytest.raises(ModelFolderError, match=r"format None"):
        InfluenceModel.from_pretrained(folder)


def test_an_option_of_another_version_is_an_error_of_the_folder(folder):
    path = folder / "model.json"
    described = json.loads(path.read_text())
    described["config"]["no_such_option"] = 1
    path.write_text(json.dumps(described))
    with pytest.raises(ModelFolderError, match="no_such_option"):
        InfluenceModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "key", ["config", "vocabulary", "protocol", "rendering.style", "vocabulary.behaviors"]
)
def test_a_description_that_lacks_a_part_names_it(folder, key):
    path = folder / "model.json"
    described = json.loads(path.read_text())
    *parents, last = key.split(".")
    part = described[parents[0]] if parents else described
    del part[last]
    path.write_text(json.dumps(described))
    with pytest.raises(ModelFolderError, match=rf"model\.json: lacks {key}"):
        InfluenceModel.from_pretrained(folder)


def test_a_head_of_another_shape_is_refused(folder):
    path = folder / "heads.safetensors"
    tensors = load_file(path)
    tensors["behavior_head.bias"] = torch.zeros(9)
    save_file(tensors, path)
    with pytest.raises(ModelFolderError, match=r"behavior_head\.bias has shape \(9,\)"):
        InfluenceModel.from_pretrained(folder)


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        tiny.tiny_model("bert", "token").save_pretrained(tmp_path / "file")


def test_how_often_items_were_met_is_kept_and_no_folder_needs_it(folder, log):
    counts = InfluenceModel.from_pretrained(folder).encoder.vocabulary.counts
    np.testing.assert_array_equal(counts, np.bincount(log.items, minlength=len(log.catalogue)))
    np.save(folder / "counts.npy", counts[1:])
    with pytest.raises(ModelFolderError, match=r"counts of shape \(29,\)"):
        InfluenceModel.from_pretrained(folder)
    (folder / "counts.npy").unlink()
    model = InfluenceModel.from_pretrained(folder)
    assert model.encoder.vocabulary.counts is None
    model.add_items(Catalogue.from_ids(["new"]))
    assert model.encoder.vocabulary.counts is None


def test_a_new_item_was_never_met(folder):
    model = InfluenceModel.from_pretrained(folder)
    known = model.encoder.vocabulary.counts
    model.add_items(Catalogue.from_ids(["new"]))
    np.testing.assert_array_equal(model.encoder.vocabulary.counts, [*known, 0])


@pytest.mark.slow
@pytest.mark.e2e
def test_the_packaged_decoder_predicts_the_same_after_save_and_load(tmp_path, log):
    config = RunConfig.model_validate(
        {
            "model": {"backbone": "smollm2-135m", "layers": 2},
            "rendering": {"template": "full", "max_events": 6},
        }
    )
    model = InfluenceModel.build(config, log).eval()
    assert model.backbone.kind == "decoder"
    model.save_pretrained(tmp_path)
    again = InfluenceModel.from_pretrained(tmp_path)
    assert again.recommend(log.at(0), 5) == model.recommend(log.at(0), 5)
