"""What rules change, against what one would tick off by hand."""

import numpy as np
import pyarrow as pa
import pytest

from llm_influence.config.rules import read_rules
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ConfigError
from llm_influence.rendering.vocabulary import Vocabulary
from llm_influence.rules.rule_book import RuleBook
from tests import graph

NONE = -np.inf
ITEMS = pa.table(
    {
        "item_id": [f"i{n}" for n in range(5)],
        "title": ["Casper", "Scream", "Heat", "Alien", ""],
        "genres": ["Comedy Children's", "Horror", "Action, Crime", "Horror|Sci-Fi", ""],
        "tags": [["a b", "c"], [], ["b"], None, ["A B"]],
        "year": [1995, 1996, 1995, 1979, None],
    }
)
EVENTS = pa.table(
    {
        "user_id": ["child", "child", "grown", "grown", "grown"],
        "item_id": ["i0", "i2", "i1", "i0", "i4"],
        "timestamp": [1, 2, 1, 2, 3],
        "behavior": ["view", "buy", "view", "view", "view"],
        "value": [5.0, 2.0, 4.0, None, 3.0],
    }
)
USERS = pa.table({"user_id": ["child", "grown"], "age": ["9", "40"], "city": ["", "Rome"]})
LOG = BehaviorLog.read(EVENTS, ITEMS, USERS)


def rule(then="exclude", name="r", unless=None, **fields):
    conditions = {field.replace("__", "."): test for field, test in fields.items()}
    more = {} if unless is None else {"unless": unless}
    return {"name": name, "if": conditions, "then": then, **more}


def changed(*rules, user="child"):
    book = RuleBook(read_rules(list(rules), "test"), Vocabulary.fit(LOG), graph.facts())
    return book.changes([LOG[user]])[0].tolist()


@pytest.mark.parametrize(
    ("field", "test", "items"),
    [
        ("genres", "Horror", [1, 3]),
        ("genres", "horror", [1, 3]),
        ("genres", ["Crime", "Children's"], [0, 2]),
        ("genres", "Action, Crime", [2]),  # the whole of it
        ("genres", {"known": False}, [4]),
        ("tags", "a b", [0, 4]),
        ("tags", "b", [0, 2, 4]),
        ("year", {"below": 1995}, [3]),
        ("year", {"at_most": 1995}, [0, 2, 3]),
        ("year", {"above": 1979, "below": 1996}, [0, 2]),
        ("year", {"at_least": 1996}, [1]),
        ("year", 1995, [0, 2]),
        ("id", ["i1", "i4"], [1, 4]),
        ("entity", "land", [0, 1, 3]),
        ("entity.film.directed_by", "ann", [0, 1]),
        ("entity.film.sequel", {"known": True}, [0, 2]),
    ],
)
def test_a_condition_about_items_holds_of_these(field, test, items):
    found = changed(rule(**{f"item__{field}": test}))
    assert [n for n, each in enumerate(found) if each == NONE] == items
    assert all(each == 0 for n, each in enumerate(found) if n not in items)


@pytest.mark.parametrize(
    ("field", "test", "users"),
    [
        ("user.age", {"below": 18}, ["child"]),
        ("user.city", "rome", ["grown"]),
        ("user.city", {"known": False}, ["child"]),
        ("history.length", {"at_least": 3}, ["grown"]),
        ("history.behavior", "buy", ["child"]),
        ("history.genres", "Horror", ["grown"]),
        ("history.id", "i0", ["child", "grown"]),
        ("last.id", "i2", ["child"]),
        ("last.year", {"known": False}, ["grown"]),
    ],
)
def test_a_condition_about_user_or_history_holds_of_these(field, test, users):
    conditions = {"item.id": "i3", field: test}
    found = [
        user
        for user in ("child", "grown")
        if changed({"name": "r", "if": conditions, "then": "exclude"}, user=user)[3] == NONE
    ]
    assert found == users


def test_effects_add_up_and_exclusion_wins():
    rules = [
        rule({"boost": 0.5}, "a", item__genres="Horror"),
        rule({"boost": -0.125}, "b", item__year={"known": True}),
        rule("exclude", "c", item__id="i3"),
    ]
    assert changed(*rules) == [-0.125, 0.375, -0.125, NONE, 0]


def test_require_leaves_only_those_and_exceptions_stay():
    only = rule("require", item__genres="Horror")
    assert changed(only) == [NONE, 0, NONE, 0, NONE]
    assert changed(only | {"unless": {"item.title": "Heat"}}) == [NONE, 0, 0, 0, NONE]
    grown = rule("require", item__genres="Horror", user__age={"above": 17})
    assert changed(grown) == [0] * 5


def test_unless_takes_away_where_all_of_it_holds():
    children = {"item.title": "Scream", "user.age": {"above": 17}}
    horror = rule(item__genres="Horror", unless=children)
    assert changed(horror) == [0, NONE, 0, NONE, 0]
    assert changed(horror, user="grown") == [0, 0, 0, NONE, 0]


def test_shared_entities_of_the_last_of_some_events():
    """i0 shares with i1 (ann, land), i2 (e0, e2), i3 (land); i2 with i0; i4 is not known."""
    assert changed(rule({"boost": 1}, item__shares={"with": "last"})) == [1, 0, 1, 0, 0]
    liked = {"with": "last", "value_from": 4}
    assert changed(rule({"boost": 1}, item__shares=liked)) == [1, 1, 1, 1, 0]
    assert changed(rule({"boost": 1}, item__shares=liked), user="grown") == [1, 1, 0, 1, 0]
    assert changed(rule("require", item__shares=liked)) == [0, 0, 0, 0, NONE]
    director = {"with": "any", "relations": ["film.directed_by"]}
    assert changed(rule({"boost": 1}, item__shares=director)) == [1, 1, 0, 0, 0]
    buy = {"with": "last", "behaviors": ["buy"]}
    assert changed(rule({"boost": 1}, item__shares=buy)) == [1, 0, 1, 0, 0]


def test_a_rule_that_has_nothing_to_share_with_says_nothing():
    never = {"with": "last", "value_from": 6}
    assert changed(rule("require", item__shares=never)) == [0] * 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"item__genres": "Horr"}, r"if, item.genres: unknown value 'Horr'.*mean 'Horror'"),
        ({"item__id": ["i1", "I2"]}, r"if, item.id: unknown value 'I2'.*did you mean 'i2'"),
        ({"item__id": "i"}, r"if, item.id: unknown value 'i'"),
        ({"item__entity": "Ann"}, r"if, item.entity: unknown value 'Ann'.*did you mean 'ann'"),
        ({"item__id": "i0", "last__id": "i9"}, r"if, last.id: unknown value 'i9'"),
        ({"item__genre": "x"}, r"rule 'r', if, item.genre: .*no column 'genre'.*'genres'"),
        ({"item__genres": {"below": 3}}, r"item.genres: \"Comedy.*is no number|is no number"),
        ({"item__entity.film.director": "x"}, r"unknown relation 'film.director'"),
        ({"item__shares": {"relations": ["x"]}}, r"if, item.shares: unknown relation 'x'"),
        ({"item__shares": {"behaviors": ["x"]}}, r"item.shares: unknown behaviour 'x'"),
        ({"item__id": "i0", "history__behavior": "x"}, r"history.behavior: unknown behaviour"),
        ({"item__id": "i0", "user__agge": 3}, r"if, user.agge: .*'child' has no feature.*'age'"),
        ({"item__id": "i0", "user__city": {"below": 3}}, None),
    ],
)
def test_what_is_not_known_here_is_named_by_rule_and_field(fields, message):
    if message is None:  # an unknown value is no error: nothing holds of it
        assert changed(rule(**fields)) == [0] * 5
        message, user = r"if, user.city, user 'grown': 'Rome' is no number", "grown"
    else:
        user = "child"
    with pytest.raises(ConfigError, match=message):
        changed(rule(**fields), user=user)


def test_entities_need_a_graph():
    rules = read_rules([rule(item__entity="ann")], "test")
    with pytest.raises(ConfigError, match=r"rule 'r', if, item.entity: the model knows no graph"):
        RuleBook(rules, Vocabulary.fit(LOG), None)


def test_ids_are_compared_whole_and_with_their_case():
    ids = ["0110065001", "a", "A", "a,b", "x y"]
    events = pa.table({"user_id": ["u"], "item_id": ["x y"], "timestamp": [1]})
    log = BehaviorLog.read(events, pa.table({"item_id": ids, "title": ids}))
    for item in ids:
        book = RuleBook(read_rules([rule(item__id=item)], "test"), Vocabulary.fit(log), None)
        assert np.flatnonzero(book.changes([log["u"]])[0] == NONE).tolist() == [ids.index(item)]


def test_a_behaviour_is_not_one_of_its_words():
    events = pa.table(
        {
            "user_id": ["u", "v"],
            "item_id": ["a", "b"],
            "timestamp": [1, 2],
            "behavior": ["add to cart", "cart"],
        }
    )
    log = BehaviorLog.read(events)
    rules = read_rules([rule(item__id="a", history__behavior="cart")], "test")
    book = RuleBook(rules, Vocabulary.fit(log), None)
    assert [book.changes([log[user]])[0, 0] == NONE for user in ("u", "v")] == [False, True]
