"""A tiny model behind the API."""

import pytest

pytest.importorskip("fastapi", reason="pip install 'llm-influence[serve]'")

from fastapi.testclient import TestClient

from llm_influence.serve.app import make_app
from llm_influence.serve.service import Service
from tests import tiny


@pytest.fixture(scope="session")
def service():
    return Service(tiny.tiny_model("bert", "token").eval(), tiny.small_log())


@pytest.fixture(scope="session")
def client(service):
    with TestClient(make_app(service)) as client:
        yield client
