"""Methods as typed options: one declaration for editors, the registry and the command line."""

import inspect

import numpy as np
import pytest

from llm_influence import Explainer
from llm_influence.attribution import methods
from llm_influence.attribution.methods import METHODS, Recency, Shapley, SmoothGrad, make_method
from llm_influence.errors import ExplanationError


def test_a_method_with_options_is_the_same_as_its_name_with_options(bert, log):
    typed = Explainer(bert, SmoothGrad(samples=3), seed=2).explain(log.at(0))
    named = Explainer(bert, "smoothgrad", samples=3, seed=2).explain(log.at(0))
    np.testing.assert_array_equal(typed.values, named.values)
    assert Explainer(bert, Shapley(evaluations=40)).method.options == {
        "evaluations": 40,
        "tolerance": 0.05,
        "surrogate": "process",
    }
    with pytest.raises(ExplanationError, match=r"options samples beside.*SmoothGrad\(samples="):
        Explainer(bert, SmoothGrad(), samples=3)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_exported_documented_and_made_from_its_name(name):
    method = METHODS[name]
    assert method.name == name
    assert method.__name__ in methods.__all__
    assert make_method(name) == method()
    assert make_method(name).options == method.defaults()
    parameters = inspect.signature(method).parameters
    assert list(parameters) == list(method.defaults())
    for option in parameters:
        assert f"{option}:" in inspect.getdoc(method)
    for fact in (method.cost, method.estimates, method.equation, method.caution):
        assert fact


def test_options_are_read_from_the_fields():
    assert SmoothGrad.defaults() == {"samples": 16, "noise": 0.1}
    assert Recency.defaults() == {}
    assert SmoothGrad(noise=0.2) == make_method("smoothgrad", {"noise": 0.2})
