"""Damaged model folders: an error that names the file, and no code of the folder is run."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from llm_influence.errors import InfluenceError, ModelError, ModelFolderError
from llm_influence.modeling.backbone import load_backbone
from llm_influence.modeling.model import InfluenceModel
from tests import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny.tiny_model().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("file", "number"),
    [
        ("heads.safetensors", float("nan")),
        ("adapter/adapter_model.safetensors", float("inf")),
        ("backbone/model.safetensors", float("nan")),
    ],
)
def test_weights_that_are_not_finite_are_named(saved, tmp_path, file, number):
    folder = shutil.copytree(saved, tmp_path / "model")
    tensors = load_file(folder / file)
    name = next(
        n for n, t in tensors.items() if t.is_floating_point() and t.ndim == 2 and t.numel()
    )
    tensors[name][0, 0] = number
    save_file(tensors, folder / file, metadata={"format": "pt"})
    with pytest.raises(ModelFolderError, match=r"1 numbers? that are not finite") as caught:
        InfluenceModel.from_pretrained(folder)
    assert file.split("/")[0] in caught.value.where


def test_code_of_a_backbone_folder_is_refused_without_a_question(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    folder = shutil.copytree(tiny.backbone_folder("bert"), tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd", "AutoModel": "odd.Odd"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "odd.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_backbone(str(folder))


@pytest.mark.parametrize("value", [3, [], None, "x", {"model": 3}])
def test_a_tokenizer_file_of_another_shape_is_refused(tmp_path, value):
    folder = shutil.copytree(tiny.backbone_folder("bert"), tmp_path / "odd")
    (folder / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(InfluenceError):
        load_backbone(str(folder))
