"""Scores in chunks, and recommendations under rules: order, trace and evaluation."""

import numpy as np
import pytest
import torch

from llm_influence.attribution.recommended import best_unseen
from llm_influence.attribution.target import Slate, bind
from llm_influence.config.rules import read_rules
from llm_influence.config.training import EvaluationConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.splits import split_log
from llm_influence.errors import ConfigError
from llm_influence.evaluation.evaluate import predict_rows
from llm_influence.evaluation.metrics import MISSED, ModelRecommender, evaluate
from llm_influence.modeling.fingerprints import model_fingerprint
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import ItemScores
from tests import tiny

ROWS, ITEMS = 5, 23


def drawn(seed: int = 0) -> torch.Tensor:
    """Few distinct scores, so that most are tied, within chunks and across them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, (ROWS, ITEMS), generator=generator).float()


@pytest.fixture
def seen():
    return torch.tensor([[0, 22, 22], [7, 6, -1], [-1, -1, -1], [3, 4, 5], [21, 0, -1]])


@pytest.mark.parametrize("chunk", [1, 7, ITEMS])
def test_ranks_are_places_in_the_sorted_list_of_candidates(chunk, seen):
    scores = drawn()
    scored = ItemScores.of(scores, chunk)
    for target in range(ITEMS):
        ranks = scored.ranks(torch.full((ROWS,), target), seen)
        for row in range(ROWS):
            left_out = set(seen[row].tolist()) - {target}
            order = sorted(
                set(range(ITEMS)) - left_out, key=lambda item: (-float(scores[row, item]), item)
            )
            if target not in seen[row]:
                assert ranks[row] == order.index(target) + 1
    targets = torch.tensor([22, 0, 7, 13, 6])
    assert scored.at(targets).tolist() == scores[torch.arange(ROWS), targets].tolist()


@pytest.mark.parametrize("k", [1, 4, 100])
@pytest.mark.parametrize("chunk", [1, 7, ITEMS])
def test_the_best_are_the_first_of_the_sorted_list_with_their_log_odds(chunk, k, seen):
    scores = drawn(1)
    allowed = torch.arange(ITEMS) != 2
    best = ItemScores.of(scores, chunk).best(k, seen=seen, allowed=allowed)
    assert best.codes.shape == (ROWS, min(k, ITEMS))
    p = scores.double().softmax(dim=1)
    for row in range(ROWS):
        candidates = set(range(ITEMS)) - {2} - set(seen[row].tolist())
        order = sorted(candidates, key=lambda item: (-float(scores[row, item]), item))[:k]
        found = best.codes[row][best.candidate[row]].tolist()
        assert found == order
        chosen = p[row, order]
        torch.testing.assert_close(
            best.log_odds[row][best.candidate[row]], torch.log(chosen / (1 - chosen))
        )


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_log_odds_stay_exact_where_one_item_has_all_of_the_probability(chunk):
    best = ItemScores.of(torch.tensor([[200.0, 0.0, 1.0]]), chunk).best(3)
    assert best.codes.tolist() == [[0, 2, 1]]
    others = torch.tensor([0.0, 1.0], dtype=torch.float64).logsumexp(0)
    assert best.log_odds[0, 0] == pytest.approx(200 - float(others), rel=1e-12)
    assert best.log_odds[0, 1:].tolist() == pytest.approx([-199, -200])
    alone = ItemScores.of(torch.tensor([[1.0]])).best(1)
    assert alone.log_odds.isfinite().all()


def test_a_chunk_is_scored_once_where_it_is_the_only_one():
    asked = []

    def score(start, stop):
        asked.append((start, stop))
        return drawn()[:, start:stop]

    scored = ItemScores(ITEMS, score)
    scored.ranks(torch.zeros(ROWS, dtype=torch.int64))
    scored.best(3)
    assert asked == [(0, ITEMS)]
    asked.clear()
    ItemScores(ITEMS, score, chunk=10).best(3)
    assert asked == [(0, 10), (10, 20), (20, 23)]  # never more than a chunk at a time


# --- rules ---------------------------------------------------------------------------------

EVEN = [f"i{n}" for n in range(0, 30, 2)]
RULES = [
    {"name": "even ones up", "if": {"item.id": EVEN}, "then": {"boost": 0.7}},
    {
        "name": "not for the young",
        "if": {"item.title": "lamp", "user.age": "20"},
        "then": "exclude",
    },
]


@pytest.fixture
def plain():
    return tiny.tiny_model("bert", "token")


@pytest.fixture
def ruled(plain):
    plain.rules = read_rules(RULES, "test")
    return plain


def test_scores_follow_the_rules_and_odds_stay_the_models_own(plain, log):
    history = log["u0"]
    before = {each.item: each for each in plain.recommend(history, 30)}
    logits = next(plain.predict([history]))[1].item_logits[0].double().numpy()
    plain.rules = read_rules(RULES, "test")
    found = plain.recommend(history, 30)
    titles = dict(zip(plain.catalogue.ids.to_pylist(), plain.catalogue.titles, strict=True))
    ids = plain.catalogue.ids.to_pylist()
    score = {item: logits[n] + 0.7 * (item in EVEN) for n, item in enumerate(ids)}
    allowed = [item for item in before if "lamp" not in titles[item].split()]
    assert len(allowed) < len(before)
    assert [each.item for each in found] == sorted(allowed, key=lambda item: -score[item])
    assert [each.item for each in found] != allowed
    for each in found:
        assert each.log_odds == pytest.approx(before[each.item].log_odds, abs=1e-9)
        assert each.rules == (("even ones up",) if each.item in EVEN else ())
    assert plain.recommend(log["u1"], 30)[0].rules is not None


def test_without_rules_nothing_changes(plain, log):
    before = plain.recommend(log["u0"], 10)
    plain.rules = read_rules(RULES, "test")
    plain.rules = []
    assert plain.recommend(log["u0"], 10) == before
    assert plain.rule_changes(log["u0"]) == []


def test_the_trace_says_which_rule_moved_what_from_where_to_where(plain, log):
    history = log["u0"]
    before = [each.item for each in plain.recommend(history, 30)]
    plain.rules = read_rules(RULES, "test")
    after = [each.item for each in plain.recommend(history, 30)]
    titles = dict(zip(plain.catalogue.ids.to_pylist(), plain.catalogue.titles, strict=True))
    shown = dict.fromkeys(before[:5] + after[:5])
    expected = [
        ("even ones up", item, 0.7, before.index(item) + 1, _place(after, item))
        for item in shown
        if item in EVEN
    ]
    expected += [
        ("not for the young", item, None, before.index(item) + 1, None)
        for item in shown
        if "lamp" in titles[item].split()
    ]
    found = plain.rule_changes(history, 5)
    assert [(c.rule, c.item, c.boost, c.before, c.after) for c in found] == expected
    assert any(change.boost is None for change in found)
    lines = [change.to_text() for change in found]
    assert (
        f"not for the young: {found[-1].title} left out, else at place {found[-1].before}" in lines
    )
    assert f"even ones up: {found[0].title} by +0.7, place {found[0].before} to " in lines[0]


def _place(items, item):
    return items.index(item) + 1 if item in items else None


def test_evaluation_ranks_as_recommendations_do(ruled):
    rows = split_log(tiny.small_log(users=30), tiny.run_config().data.split).test
    config = EvaluationConfig(batch_size=4)
    _, ranks = evaluate(ModelRecommender(ruled), rows, config)
    ids = ruled.catalogue.ids.to_pylist()
    expected = [
        _place(
            [each.item for each in ruled.recommend(rows.history(n), 30)],
            ids[rows.target_items[n]],
        )
        for n in range(len(rows))
    ]
    assert None in expected
    assert ranks.tolist() == [MISSED if place is None else place for place in expected]
    found = predict_rows(ruled, rows, config, top=5)
    assert found["rank"].tolist() == ranks.tolist()
    first = [ruled.recommend(rows.history(n), 5) for n in range(len(rows))]
    assert [[ids[code] for code in row] for row in found["top"]] == [
        [each.item for each in row] for row in first
    ]
    ruled.rules = []
    assert evaluate(ModelRecommender(ruled), rows, config)[1].tolist() != ranks.tolist()


def test_what_is_explained_is_what_is_recommended(ruled, log):
    histories = [log["u0"], log["u1"]]
    codes, _ = best_unseen(ruled, histories, 3)
    ids = ruled.catalogue.ids.to_pylist()
    for history, row in zip(histories, codes.tolist(), strict=True):
        assert [ids[code] for code in row] == [each.item for each in ruled.recommend(history, 3)]
    slate = bind(Slate(3), ruled, histories)
    with torch.no_grad():
        prediction = next(ruled.predict(histories))[1]
    torch.testing.assert_close(
        slate.values(prediction, torch.arange(2)), torch.ones(2, dtype=torch.float64)
    )


def test_a_history_that_grows_is_under_them_too(ruled, log):
    history = log["u0"]
    followed = ruled.session(history.keep(slice(0, 2)))
    for event in history.events()[2:]:
        followed.append(event)
    found, whole = followed.recommend(30), ruled.recommend(history, 30)
    assert [each.item for each in found] == [each.item for each in whole]


def test_rules_are_saved_and_hold_of_new_items(ruled, log, tmp_path):
    ruled.save_pretrained(tmp_path / "m")
    loaded = InfluenceModel.from_pretrained(tmp_path / "m")
    assert loaded.rules == ruled.rules
    loaded.add_items(Catalogue.from_table(tiny.items_table(32).slice(30)))
    assert len(loaded.recommend(log["u1"], 40)) > len(ruled.recommend(log["u1"], 40))
    history = log["u0"]
    shown = [each.item for each in ruled.recommend(history, 5)]
    assert [
        each.item for each in InfluenceModel.from_pretrained(tmp_path / "m").recommend(history, 5)
    ] == shown


def test_explanations_of_other_rules_are_another_run(plain):
    before = model_fingerprint(plain)
    plain.rules = read_rules(RULES, "test")
    assert model_fingerprint(plain) != before


def test_a_wrong_field_is_refused_when_rules_are_set(plain):
    with pytest.raises(ConfigError, match=r"rule 'r', if, item.colour: .*no column 'colour'"):
        plain.rules = read_rules(
            [{"name": "r", "if": {"item.colour": "red"}, "then": "exclude"}], "test"
        )
    assert plain.rules == []


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_changed_scores_rank_as_their_sum_does_in_any_chunks(chunk):
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.0, 2.0]])
    changes = torch.tensor([[-torch.inf, 0.0, 0.0, 2.5, 0.25]])
    ruled = ItemScores.of(scores, chunk).under(changes)
    best = ruled.best(5)
    assert best.shown().tolist() == [[3, 4, 2, 1, -1]]
    plain = ItemScores.of(scores, chunk).best(5)
    odds = dict(zip(plain.codes[0].tolist(), plain.log_odds[0].tolist(), strict=True))
    found = zip(best.codes[0].tolist(), best.log_odds[0].tolist(), strict=True)
    assert all(np.isclose(odds[code], each) for code, each in found)
    assert [int(ruled.ranks(torch.tensor([n]))[0]) for n in (3, 4, 2, 1)] == [1, 2, 3, 4]
    assert ruled.excluded(torch.tensor([0])).tolist() == [True]
