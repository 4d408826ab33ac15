"""Resume from damaged checkpoints: the older one is used, with a warning that names both."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from llm_influence.errors import OutputError
from llm_influence.training.base_trainer import last_checkpoint

FILES = ("heads.safetensors", "optimizer.pt", "trainer_state.json")


@pytest.fixture
def folder(tmp_path):
    for step in (5, 10):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        save_file({"x": torch.ones(100)}, checkpoint / FILES[0])
        torch.save({"x": torch.ones(100)}, checkpoint / FILES[1])
        (checkpoint / FILES[2]).write_text(json.dumps({"step": step}))
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_the_older_checkpoint_is_used(folder, name, caplog):
    assert last_checkpoint(folder) == str(folder / "checkpoint-10")
    path = folder / "checkpoint-10" / name
    path.write_bytes(path.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(folder) == str(folder / "checkpoint-5")
    assert str(path) in caplog.text
    assert "checkpoint-5" in caplog.text


def test_without_another_checkpoint_the_file_is_named(folder):
    for step in (5, 10):
        (folder / f"checkpoint-{step}" / FILES[1]).write_bytes(b"")
    with pytest.raises(OutputError, match=r"checkpoint-10/optimizer\.pt: .*damaged.*train again"):
        last_checkpoint(folder)
