"""The public surface: what `import llm_influence` promises."""

import subprocess
import sys

import pytest

import llm_influence


def test_the_public_names_are_these():
    assert llm_influence.__all__ == [
        "Behavior",
        "BehaviorLog",
        "Catalogue",
        "Contrast",
        "Event",
        "Explainer",
        "Feedback",
        "History",
        "Influence",
        "InfluenceError",
        "InfluenceModel",
        "Item",
        "RunConfig",
        "Slate",
        "build_report",
        "explain_batch",
        "finetune",
    ]


@pytest.mark.parametrize("name", llm_influence.__all__)
def test_every_public_name_is_found_and_documented(name):
    assert getattr(llm_influence, name).__doc__


def test_importing_the_library_imports_no_heavy_one():
    code = "import sys, llm_influence; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Explaner"):
        _ = llm_influence.Explaner
