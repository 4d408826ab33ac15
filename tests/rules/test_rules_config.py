"""Rules as data: what is read, what is written back, what is refused by rule and field."""

from pathlib import Path

import pytest
import yaml

from llm_influence.config.rules import SharesTest, ValueTest, load_rules, read_rules
from llm_influence.config.run import RunConfig
from llm_influence.errors import ConfigError

WRITTEN = """
- name: no horror for children
  if: {item.genres: Horror, user.age: {below: 18}}
  unless: {item.title: {has: [Casper]}}
  then: exclude
- name: the last that was liked
  if: {item.shares: {with: last, value_from: 4}}
  then: {boost: 0.5}
"""


def test_rules_are_read_and_written_back_the_same(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(WRITTEN)
    rules = load_rules(path)
    assert rules[0].conditions["item.genres"] == ValueTest(has=["Horror"])
    assert rules[0].conditions["user.age"] == ValueTest(below=18)
    assert rules[1].conditions["item.shares"] == SharesTest.model_validate({"value_from": 4})
    assert (rules[1].then.kind, rules[1].then.by) == ("boost", 0.5)
    assert read_rules([rule.model_dump(mode="json") for rule in rules], "again") == rules


@pytest.mark.parametrize("inline", [True, False])
def test_a_run_has_them_as_a_block_or_by_file_and_its_saved_file_has_the_rules(tmp_path, inline):
    (tmp_path / "rules.yaml").write_text(f"rules:{WRITTEN.replace(chr(10), chr(10) + '  ')}")
    block = yaml.safe_load(WRITTEN) if inline else str(tmp_path / "rules.yaml")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"rules": block}))
    config = RunConfig.load(tmp_path / "run.yaml")
    assert [rule.name for rule in config.rules] == [
        "no horror for children",
        "the last that was liked",
    ]
    (tmp_path / "rules.yaml").unlink()
    config.save(tmp_path / "saved.yaml")
    assert RunConfig.load(tmp_path / "saved.yaml") == config
    assert RunConfig().rules == []


def test_the_shipped_rules_load():
    paths = sorted(Path("configs/rules").glob("*.yaml"))
    assert paths
    assert all(load_rules(path) for path in paths)


RULE = {"name": "r", "if": {"item.genres": "Horror"}, "then": "exclude"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, r"x, rule 1: it has no name"),
        ({"iff": {}}, r"x, rule 'r': unknown key 'iff'.*did you mean 'if'"),
        ({"if": {"user.age": 3}}, r"x, rule 'r', if: no condition is about the item"),
        ({"if": {"genres": 3}}, r"x, rule 'r', if, genres: 'genres' is not a field"),
        ({"if": []}, r"x, rule 'r', if: \[\].*mapping of fields"),
        ({"if": {"item.year": {"belw": 3}}}, r"if, item.year: unknown test 'belw'.*'below'"),
        ({"if": {"item.year": {"below": "old"}}}, r"item.year: below is 'old'.*valid number"),
        ({"if": {"item.year": {}}}, r"item.year: it is {}.*at least one of has"),
        ({"if": {"item.shares": {"with": "first"}}}, r"item.shares: with is 'first'.*'last'"),
        ({"if": {"item.shares": {"wit": 1}}}, r"item.shares: unknown test 'wit'.*'with'"),
        ({"unless": {}}, r"rule 'r', unless: {}"),
        ({"then": "hide"}, r"rule 'r', then: 'hide'.*exclude, require or"),
        ({"then": {"boost": "much"}}, r"rule 'r', then: by is 'much'"),
        ({"then": "__import__('os')"}, r"rule 'r', then: "),
    ],
)
def test_what_is_wrong_is_named_by_rule_and_field(change, message):
    with pytest.raises(ConfigError, match=message):
        read_rules([RULE | change], "x")


def test_a_name_is_given_once_and_rules_are_a_list():
    with pytest.raises(ConfigError, match=r"x: 2 rules are called 'r'"):
        read_rules([RULE, RULE], "x")
    with pytest.raises(ConfigError, match=r"rules: a dict.*a list of rules"):
        RunConfig.of({"rules": RULE}, "x")
