"""Templates as data, and the errors of wrong ones."""

import pytest

from llm_influence.errors import TemplateError
from llm_influence.rendering.template import Template


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: t, event: '{behavior} {itm}'}", "unknown field 'itm'.*did you mean 'item'"),
        ("{name: t, event: '{behavior}{item}'}", "2 fields without a space"),
        ("{name: t, event: 'bought something'}", "has no field"),
        ("{name: t, event: '{item}', history: 'of {age}'}", r"unknown field 'age'.*\{user.age\}"),
        ("{name: t, events: '{item}'}", "event"),
        ("{name: t, event: '{item}', language: fr}", "language"),
        ("{name: t, event: '{item}', added: [item]}", "'item' cannot be added"),
        ("{name: t, event: '{item} {gap}', added: [gap]}", "'gap' cannot be added"),
        ("{name: t, event: '{item}', added: [gap, gap]}", "'gap' cannot be added"),
        ("name: [", "own.yaml"),
    ],
)
def test_a_wrong_template_is_refused_with_its_file(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TemplateError, match=f"(?s)(own.yaml|template 't').*{message}|{message}"):
        Template.load(str(path))


def test_a_missing_file_and_an_unknown_name_are_refused_with_the_shipped_names():
    with pytest.raises(TemplateError, match=r"absent.yaml.*'prose'"):
        Template.load("absent.yaml")
    with pytest.raises(TemplateError, match=r"'pros'.*did you mean 'prose'"):
        Template.load("pros")


def test_a_template_of_your_own_is_read_from_its_file(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("{name: own, history: 'of {user.age}', event: '<{item}> after {gap}'}")
    template = Template.load(str(path))
    assert template.user_features == ("age",)
    assert [chunk.render("x") for chunk in template.event_chunks] == ["<x>", "after", "x"]
