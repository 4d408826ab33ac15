"""Fixtures shared by all rooms."""

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would reach a hub fails instead

from tests import tiny


@pytest.fixture(autouse=True)
def one_thread():
    """Tests run side by side; one thread each is faster than all threads for all."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def log():
    return tiny.small_log()


@pytest.fixture(scope="session", params=[(k, s) for k in tiny.BACKBONES for s in ("token", "text")])
def model(request):
    """One tiny model for every family of transformers and rendering style."""
    return tiny.tiny_model(*request.param)


@pytest.fixture(
    scope="session",
    params=[*((k, s) for k in tiny.BACKBONES for s in ("token", "text")), *tiny.CELLS],
)
def any_model(request):
    """The same, recurrent models included."""
    return tiny.tiny_model(*request.param)
