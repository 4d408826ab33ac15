"""Models that the tests of this room share.

`make test` runs one encoder, one decoder and, where it is served, one recurrent model; the other
families and styles are slow.
"""

import pytest

from tests import tiny
from tests.attribution.stand_ins import FAST, model_of


def _params(kinds):
    return [
        pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow, id="-".join(kind))
        for kind in kinds
    ]


TRANSFORMERS = [(kind, style) for kind in tiny.BACKBONES for style in ("token", "text")]


@pytest.fixture(scope="session", params=_params(TRANSFORMERS))
def model(request):
    """One tiny model for every family of transformers and rendering style."""
    return model_of(*request.param)


@pytest.fixture(scope="session", params=_params([*TRANSFORMERS, *tiny.CELLS]))
def any_model(request):
    """The same, recurrent models included."""
    return model_of(*request.param)


@pytest.fixture(scope="session")
def bert():
    """One encoder over the full template, for what does not depend on family and style."""
    return model_of("bert", "token")


@pytest.fixture(scope="session")
def recurrence():
    """A gated recurrence over the full template."""
    return model_of("recurrence", "token")
