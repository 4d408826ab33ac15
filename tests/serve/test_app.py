"""The API: answers equal those of the Python API; every mistake is a problem of four parts."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastapi.testclient import TestClient

from llm_influence.attribution.counterfactual import counterfactual
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.sufficient import sufficient_events
from llm_influence.attribution.target import Contrast
from llm_influence.serve.app import MOST_BYTES, Limits, make_app
from llm_influence.serve.jobs import MOST_WAITING, BusyError, Jobs
from llm_influence.types import Event, History

USER = "u7"  # 11 events


def events_of(service, user=USER):
    history = service.log[user]
    names = ("item", "behavior", "timestamp", "value")
    return [{name: getattr(event, name) for name in names} for event in history.events()]


def test_recommendations_are_those_of_the_model_for_a_user_and_for_his_events(service, client):
    best = service.model.recommend(service.log[USER], 5)
    for question in ({"user": USER}, {"events": events_of(service)}):
        answer = client.post("/recommend", json=question | {"k": 5}).json()["items"]
        assert [one["item"] for one in answer] == [one.item for one in best]
        assert [one["rank"] for one in answer] == [1, 2, 3, 4, 5]
        np.testing.assert_allclose(
            [one["probability"] for one in answer], [one.probability for one in best], rtol=1e-4
        )


@pytest.mark.parametrize("item", [None, "i7"])
def test_explanations_are_those_of_the_explainer(service, client, item):
    answer = client.post("/explain", json={"user": USER, "item": item}).json()
    record = Explainer(service.model, fidelity_masks=0).explain(service.log[USER], item or "top1")
    assert answer["item"] == record.target_id
    np.testing.assert_allclose([e["score"] for e in answer["events"]], record.values, atol=1e-4)
    assert answer["sentence"] == record.to_text(recommended=item is None)
    assert (answer["rank"], answer["candidates"]) == (record.target_rank, record.candidates)


def test_why_not_another_item(service, client):
    question = {"user": USER, "item": "i7", "over": "i8"}
    answer = client.post("/explain", json=question).json()
    record = Explainer(service.model, fidelity_masks=0).explain(
        service.log[USER], Contrast("i7", "i8")
    )
    np.testing.assert_allclose([e["score"] for e in answer["events"]], record.values, atol=1e-4)


def test_a_changed_history_is_the_history_typed_by_hand(service, client):
    old = service.log[USER].events()
    edits = [
        {"action": "remove", "place": 0},
        {"action": "change", "place": 2, "behavior": "purchase", "value": 1.0},
        {"action": "change", "place": 5, "timestamp": old[-1].timestamp + 5},
        {"action": "add", "item": "i3", "behavior": "click", "timestamp": old[-1].timestamp + 9},
    ]
    answer = client.post("/what-if", json={"user": USER, "edits": edits, "k": 5}).json()
    by_hand = [
        *old[1:2],
        Event(old[2].item, "purchase", old[2].timestamp, 1.0),
        *old[3:5],
        *old[6:],
        Event(old[5].item, old[5].behavior, old[-1].timestamp + 5, old[5].value),
        Event("i3", "click", old[-1].timestamp + 9),
    ]
    changed = History.from_events(USER, by_hand, service.log[USER].user)
    assert [e["item"] for e in answer["events"]] == [e.item for e in by_hand]
    best = service.model.recommend(changed, 5)
    assert [one["item"] for one in answer["after"]] == [one.item for one in best]
    ranks = [{one["item"]: one["rank"] for one in answer[name]} for name in ("before", "after")]
    for one in answer["moved"]:
        assert [slate.get(one["item"]) for slate in ranks] == [one["before"], one["after"]]
        assert one["before"] != one["after"]
    assert answer["changed"] is bool(answer["moved"])
    assert answer["explanation_after"]["item"] == best[0].item


def test_the_fewest_events_are_those_of_the_python_api(service, client):
    history = service.log[USER]
    skipped = len(history) - len(service.model.encoder.trim(history))
    changed = counterfactual(service.model, history)
    answer = client.post("/fewest-to-change", json={"user": USER}).json()
    assert answer["places"] == [skipped + place for place in changed.removed]
    assert (answer["instead"] is None) == (changed.flipped_to is None)
    kept = sufficient_events(service.model, history)
    answer = client.post("/fewest-to-keep", json={"user": USER, "language": "zh"}).json()
    assert answer["places"] == [skipped + place for place in kept.kept]
    items = [event["item"] for event in events_of(service)]
    assert [event["item"] for event in answer["events"]] == [items[p] for p in answer["places"]]


def test_every_question_may_have_changes(service, client):
    """The answers are those for the changed history, features of the user included."""
    edits = [{"action": "remove", "place": 0}, {"action": "remove", "place": 4}]
    kept = [event for place, event in enumerate(service.log[USER].events()) if place not in (0, 4)]
    changed = History.from_events(USER, kept, service.log[USER].user)
    record = Explainer(service.model, fidelity_masks=0).explain(changed)
    answer = client.post("/explain", json={"user": USER, "edits": edits}).json()
    np.testing.assert_allclose([e["score"] for e in answer["events"]], record.values, atol=1e-4)
    found = client.post("/fewest-to-keep", json={"user": USER, "edits": edits}).json()
    assert found["item"] == record.target_id


def test_nothing_moves_without_a_change_and_an_empty_history_has_no_explanation(client, service):
    answer = client.post("/what-if", json={"user": USER}).json()
    assert answer["before"] == answer["after"]
    assert answer["says"].startswith("Nothing moved")
    size = len(service.log["u0"])
    gone = [{"action": "remove", "place": place} for place in range(size)]
    answer = client.post("/what-if", json={"user": "u0", "edits": gone}).json()
    assert answer["explanation_after"] is None
    assert len(answer["after"]) == 10


def test_users_and_items_are_found_by_a_part_of_their_name(client, service):
    assert [u["user"] for u in client.get("/users?search=U1").json()] == ["u1", "u10", "u11"]
    title = service.model.catalogue.titles[4]
    assert title in [i["title"] for i in client.get(f"/items?search={title.upper()}").json()]
    assert client.get("/items?search=(").json() == []


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/recommend", {}, "give either user or events"),
        ("/recommend", {"user": "nobody"}, "nobody"),
        ("/recommend", {"user": USER, "k": 0}, "greater than or equal to 1"),
        ("/recommend", {"user": USER, "colour": 1}, "Extra inputs"),
        ("/recommend", {"events": [{"item": "none", "behavior": "click", "timestamp": 1}]}, "none"),
        ("/recommend", {"events": [{"item": "i1", "behavior": "buy", "timestamp": 1}]}, "buy"),
        ("/recommend", {"events": [{"item": "i1", "timestamp": 1}]}, "without a behaviour"),
        ("/explain", {"events": []}, "without events"),
        ("/explain", {"user": USER, "over": "i1"}, "without the item"),
        ("/explain", {"user": USER, "item": "none"}, "none"),
        ("/what-if", {"user": USER, "edits": [{"action": "remove", "place": 99}]}, "place 99"),
        ("/what-if", {"user": USER, "edits": [{"action": "add", "item": "i1"}]}, "timestamp"),
        ("/what-if", {"user": USER, "edits": 2 * [{"action": "remove", "place": 1}]}, "twice"),
    ],
)
def test_mistakes_are_problems_of_four_parts(client, path, body, words):
    response = client.post(path, json=body)
    assert response.status_code == 422
    assert set(response.json()) == {"found", "where", "expected", "fix"}
    assert words in response.text


def test_unknown_paths_broken_bodies_and_long_bodies_are_refused(client):
    assert client.get("/etc/passwd").status_code == 404
    assert client.get("/../pyproject.toml").status_code == 404
    assert client.get("/recommend").status_code == 405
    headers = {"Content-Type": "application/json"}
    for content in (b"{", b"\xff\xfe", b"[]", b'{"user": NaN}', b""):
        assert client.post("/recommend", content=content, headers=headers).status_code == 422
    assert client.post("/recommend", content=b" " * (MOST_BYTES + 1)).status_code == 413
    assert client.post("/recommend", content=iter([b"{}"])).status_code == 413


def test_a_token_guards_everything_but_the_page_and_health(service):
    limits = Limits(token="secret")  # noqa: S106
    with TestClient(make_app(service, limits)) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/").status_code == 200
        assert client.get("/users").status_code == 401
        for token, status in (("wrong", 401), ("secret", 200)):
            headers = {"Authorization": f"Bearer {token}"}
            assert client.get("/users", headers=headers).status_code == status


def test_requests_at_the_same_time_are_answered_as_one_by_one(client):
    users = [f"u{n}" for n in range(12)]

    def first(user):
        return client.post("/explain", json={"user": user}).json()["sentence"]

    alone = [first(user) for user in users]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(first, users)) == alone


def test_requests_are_counted_and_numbered(client):
    response = client.get("/health")
    assert len(response.headers["X-Request-Id"]) == 12
    assert (
        'llm_influence_requests_total{path="/health",status="200"}' in client.get("/metrics").text
    )


def test_a_job_that_fails_fails_alone_and_waiting_jobs_run_together():
    jobs, sizes = Jobs(), []

    def halves(numbers):
        sizes.append(len(numbers))
        return [1 / number for number in numbers]

    blocker = jobs.submit(lambda _: [sizes.append("first") or 0], 0)
    answers = [jobs.submit(halves, number) for number in (1, 2, 0, 4)]
    assert blocker.result() == 0
    assert [answers[place].result() for place in (0, 1, 3)] == [1, 0.5, 0.25]
    with pytest.raises(ZeroDivisionError):
        answers[2].result()
    jobs.close()
    for _ in range(MOST_WAITING):
        jobs.submit(halves, 1)  # nobody works any more
    with pytest.raises(BusyError):
        jobs.submit(halves, 1)
