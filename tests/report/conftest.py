"""Explanations by several methods, made by hand, and a parser of pages."""

from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser

import pytest

from llm_influence.influence.influence import Influence
from tests.influence.conftest import influence_of

EVIL = "<script>alert(1)</script>\"'&"


class Tags(HTMLParser):
    """Collects the tags with their attributes, and checks that they close in order."""

    VOID = frozenset({"meta", "col", "line", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="session")
def make() -> Callable[..., Influence]:
    return partial(influence_of, full_value=-3.0, gap=0.004)
