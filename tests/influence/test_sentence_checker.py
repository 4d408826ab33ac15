"""A thousand generated sentences, each clause held against the numbers by another road."""

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.faithfulness.sentence_checker import contradictions
from llm_influence.influence.slate_change import SlateChange

METHODS = ("group_shapley", "shapley", "leave_one_out", "integrated_gradients", "attention_rollout")
BEHAVIORS = ("click", "view", "cart", "purchase", "rate", "favourite", "escalate")


def change(random, count):
    left, size = int(random.integers(0, 6)), 10
    return SlateChange(
        event=int(random.integers(count)),
        size=size,
        moved=int(random.integers(0, 1 + size - left)),
        leaves=tuple(f"L{place}" for place in range(left)),
        enters=tuple(f"M{place}" for place in range(left)),
    )


def drawn(make, seed):
    """A random record: any method, target, block, errors, sizes and signs."""
    random = np.random.default_rng(seed)
    method = str(random.choice(METHODS))
    share = method == "attention_rollout"
    count = int(random.integers(1, 12))
    values = random.normal(size=count) * 10.0 ** random.integers(-3, 1)
    values[random.random(count) < 0.2] = 0.0
    if random.random() < 0.15:
        values = -np.abs(values)
    values = np.abs(values) / max(np.abs(values).sum(), 1e-9) if share else values
    sampled = method.endswith("shapley")
    errors = np.abs(random.normal(size=count)) * 0.2 * np.abs(values).mean() if sampled else None
    block = ()
    if method == "group_shapley" and count > 3:
        older = random.random() < 0.5
        size = int(random.integers(2, count))
        places = range(size) if older else random.choice(count, size, replace=False).tolist()
        block = tuple(sorted(places))
        values[list(block)] = values[list(block)].mean()
        errors[list(block)] = errors[list(block)].mean()
    exact = method != "leave_one_out"
    settled = bool(random.random() < 0.7)
    placed = random.random() < 0.5
    item = {"target_rank": int(random.integers(1, 5000)), "candidates": 12_101} if placed else {}
    target = {}
    if not placed and random.random() < 0.5:
        target = {"target": "slate", "prediction": math.nan, "slate_change": change(random, count)}
    return make(
        values,
        method=method,
        units="share" if share else "target",
        gap=0.0 if exact else 0.4,
        titles=[f"N{place}n" for place in range(count)],
        behaviors=random.choice(BEHAVIORS, count).tolist(),
        values=random.choice([None, 4.5], count).tolist(),
        times=np.sort(random.integers(0, 10**7, count)).tolist(),
        card={"converged": settled} if sampled else {},
        standard_errors=errors,
        block=block,
        unread=tuple(f for f in ("behavior", "value", "time") if random.random() < 0.3),
        target_name="T",
        **({"prediction": float(random.random() ** 3)} | item | target),
    )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_clause_of_a_thousand_sentences_contradicts_the_numbers(make, language):
    wrong = {}
    for seed in range(500):
        record = drawn(make, seed if language == "en" else 10_000 + seed)
        text = record.to_text(language, most=1 + seed % 3, recommended=seed % 2 == 0)
        if problems := contradictions(record, text, language):
            wrong[text] = problems
    assert wrong == {}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_checker_finds_what_is_wrong(make, language):
    """Every change of a number that a sentence states is found."""
    records = [drawn(make, seed) for seed in range(200)]
    changes = (
        lambda r: replace(r, values=-r.values),
        lambda r: replace(r, values=r.values * 1.2),
        lambda r: replace(r, prediction=min(1.0, r.prediction * 1.2)),
        lambda r: replace(r, target_rank=7 if r.target_rank is None else None, candidates=9),
        lambda r: replace(r, block=() if r.block else (0, 1)),
        lambda r: replace(r, unread=("behavior",)),
        lambda r: replace(r, unread=("time",)),
        lambda r: replace(r, slate_change=SlateChange(0, 9, 1, ("L0",), ("M1",))),
    )
    for change in changes:
        assert any(contradictions(change(r), r.to_text(language), language) for r in records)
