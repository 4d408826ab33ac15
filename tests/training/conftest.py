"""Fixtures of the training tests."""

import pytest

from llm_influence.data.splits import split_log
from tests import tiny


@pytest.fixture(scope="session")
def train():
    """Training events of the small log."""
    return split_log(tiny.small_log()).train
