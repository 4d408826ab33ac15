import argparse
import importlib
import json
import math
import sys
from pathlib import Path

import pytest

from benchmarks.harness import Results, arguments, command_line, selection, write_benchmark

ROOT = Path(__file__).parents[2]
OTHER_LIBRARIES = ("captum", "cornac", "pytorch_lightning", "recbole", "rectools", "shap", "shapiq")
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    if path.stem != "__init__"
]


@pytest.mark.parametrize("name", MODULES)
def test_every_program_can_be_imported_and_explains_its_options(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OTHER_LIBRARIES:
            raise
        pytest.skip(f"needs {error.name}, which only benchmarks use")
    parser = getattr(module, "PARSER", None)
    if parser is not None:
        assert "--resume" in parser.format_help()
        assert str(parser.get_default("output")).startswith("docs/benchmarks/")


def test_options_have_the_type_of_their_default(tmp_path):
    parser = arguments(
        "About.\n\nMore.",
        "x",
        seeds=(0, 1),
        rate=0.5,
        sizes=[1, 2],
        layers=(int, "how many"),
        on=False,
    )
    words = ["--rate", "2", "--sizes", "3", "--on", "--seeds", "4", "--no-resume", "--work", "w"]
    options = parser.parse_args(words)
    assert (options.rate, options.sizes, options.on, options.layers) == (2.0, [3], True, None)
    assert (options.seeds, options.resume, options.work) == ([4], False, Path("w"))
    assert parser.description == "About."


def test_a_stopped_run_continues_and_other_settings_are_refused(tmp_path):
    def refuse():
        raise RuntimeError("measured twice")

    path = tmp_path / "kept.jsonl"
    Results(path, {"core": 0}).keep("a", lambda: {"value": 1.5})
    assert Results(path, {"core": 0}).keep("a", refuse) == {"value": 1.5}
    with pytest.raises(SystemExit, match="holds results of"):
        Results(path, {"core": 1})
    again = Results(path, {"core": 1}, resume=False)
    assert "a" not in again
    assert again.keep("a", lambda: [1]) == [1]


def test_a_file_is_written_whole_and_only_with_numbers(tmp_path):
    path = tmp_path / "new" / "x.json"
    rest = {"name": "x", "protocol": {}, "rows": [{"system": "a"}]}
    write_benchmark(path, figures={"one": 1}, **rest)
    before = path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="JSON"):
        write_benchmark(path, figures={"one": math.nan}, **rest)
    assert path.read_text(encoding="utf-8") == before
    assert json.loads(before)["figures"] == {"one": 1}


def test_a_command_holds_no_path_of_the_machine(monkeypatch, tmp_path):
    inside = ROOT / "runs" / "x"
    words = ["program.py", str(tmp_path / "folder"), f"--out={inside}", "--n", "3"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert command_line() == "python program.py folder --out=runs/x --n 3"


def test_an_unknown_name_of_a_setting_is_refused():
    assert selection("b; a", ["a", "b"]) == ["b", "a"]
    assert selection(None, ["a", "b"]) == ["a", "b"]
    with pytest.raises(SystemExit, match="--only c: choose among a;b"):
        selection("c", ["a", "b"])


def test_shared_options_are_not_lost():
    names = vars(arguments(None, "x").parse_args([])).keys()
    assert names == vars(argparse.Namespace(output=0, work=0, resume=0, threads=0, core=0)).keys()
