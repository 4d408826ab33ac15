"""YAML as plain data: texts keep their characters, and a hostile file is an error of its line."""

import pytest

from llm_influence.config.document import MAX_DEPTH, as_written, parse_yaml
from llm_influence.config.rules import read_rules
from llm_influence.config.run import RunConfig
from llm_influence.errors import ConfigError, TemplateError
from llm_influence.rendering.template import Template

WRITTEN = ["0110065001", "NO", "1984", "2020-01-01", "1.10", "1e-3", "true", "on", "12:30", "0x1f"]


def test_a_text_option_keeps_every_character():
    listed = ", ".join(WRITTEN)
    tests = parse_yaml(f"[{{name: r, if: {{item.id: [{listed}]}}, then: exclude}}]", "x")
    assert read_rules(tests, "x")[0].conditions["item.id"].has == WRITTEN
    for text in WRITTEN:
        assert RunConfig.load(None, [f"--output={text}"]).output == text
        assert str(as_written(parse_yaml(text, "x"))) == text
    columns = RunConfig.load(None, ["--data.columns={user_id: 01, item_id: NO}"]).data.columns
    assert columns == {"user_id": "01", "item_id": "NO"}


def test_numbers_and_truths_are_still_read():
    text = "{a: 1e-3, b: 1.50, c: -2, d: true, e: null, f: ~, g: }"
    assert parse_yaml(text, "x") == {
        **{"a": 0.001, "b": 1.5, "c": -2, "d": True},
        **dict.fromkeys("efg"),
    }
    config = RunConfig.load(None, ["--train.seed=007", "--data.split.validation_from=0.80"])
    assert (config.train.seed, config.data.split.validation_from) == (7, 0.8)


@pytest.mark.parametrize("number", [".inf", "inf", "nan", "1e999"])
def test_numbers_are_finite(number):
    with pytest.raises(ConfigError, match=r"train\.learning_rate is"):
        RunConfig.load(None, [f"--train.learning_rate={number}"])


def test_keys_are_texts():
    assert list(parse_yaml("{0110: a, NO: b, 1: c, true: d}", "x")) == ["0110", "NO", "1", "true"]


BOMB = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{earlier}'] * 9)}]\n"
    for earlier, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"aliases repeat too many values, line \d"),
        ("a: &a [*a]", r"aliases repeat too many values, line 1"),
        ("[" * (MAX_DEPTH + 1), r"more than 50 values inside each other, line 1"),
        ("[" * 5000, r"more than 50 values inside each other, line 1"),
        ("0110: a\nb: 1\n0110: c", r"key '0110' stands twice, line 3"),
        ("{[a]: b}", r"a list or mapping as a key, line 1"),
        ("!!python/object:os.system x", r"tag '!!python/object:os.system', line 1"),
        ("!!bool maybe", r"is not YAML"),
        ("!!map x", r"is not YAML"),
        ("\0", r"special characters"),
    ],
)
def test_a_hostile_file_is_refused(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, "x")
    assert len(str(caught.value)) < 2000


def test_null_is_no_value_of_a_rule():
    rule = {"name": "r", "if": {"item.genres": ["a", None]}, "then": "exclude"}
    with pytest.raises(ConfigError, match=r"r', if, item.genres: has is .*'null' in quotes"):
        read_rules([rule], "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: caf\xe9\nevent: '{item}'\n", r"own\.yaml: cannot be read \('utf-8' codec"),
        (b"name: t\nevent: '{item}'\nlanguag: en\n", r"unknown option 'languag'.*'language'"),
        (b"name: t\nevent: [a]\n", r"event is \['a'\].*valid string"),
        (b"- a\n", r"own\.yaml: it is \['a'\]"),
    ],
)
def test_a_template_file_is_refused_in_a_line(tmp_path, content, message):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(TemplateError, match=message) as caught:
        Template.load(str(path))
    assert "\n" not in str(caught.value)


def test_words_of_a_template_keep_their_characters(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("name: t\nevent: '{behavior} {item}'\nbehaviors: {0: NO, 1: 1.10, 2: true}\n")
    assert Template.load(str(path)).behaviors == {"0": "NO", "1": "1.10", "2": "true"}
