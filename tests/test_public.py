"""The public surface: what `import llm_influence` promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import llm_influence


@pytest.mark.parametrize("name", llm_influence.__all__)
def test_every_public_name_is_found_and_documented(name):
    assert getattr(llm_influence, name).__doc__


def test_importing_the_library_imports_no_heavy_one():
    code = "import sys, llm_influence; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Explaner"):
        _ = llm_influence.Explaner


def test_docs_and_examples_import_public_names_alone():
    deep = re.compile(r"(?:from|import) llm_influence\.\w")
    places = [Path("README.md"), *Path("docs").rglob("*.md"), *Path("docs").rglob("*.ipynb")]
    places += Path("examples").glob("*.py")
    found = {str(p): deep.findall(p.read_text(encoding="utf-8")) for p in places}
    assert {place: deep for place, deep in found.items() if deep} == {}


def test_names_that_docs_and_examples_import_are_public():
    line = re.compile(r"from llm_influence import (\([^)]*\)|[^\n\"\\]+)")
    places = [Path("README.md"), *Path("docs").rglob("*.md"), *Path("docs").rglob("*.ipynb")]
    places += Path("examples").glob("*.py")
    for place in places:
        for names in line.findall(place.read_text(encoding="utf-8")):
            for name in re.findall(r"[A-Za-z_]\w*", re.sub(r'#.*|\\n|"', " ", names)):
                assert name in llm_influence.__all__, f"{place}: {name}"
