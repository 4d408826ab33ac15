"""Baselines: scores that do not use the model."""

from dataclasses import replace

import numpy as np
import pytest

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.target import Contrast
from llm_influence.errors import ExplanationError
from tests.attribution.stand_ins import typed


def test_random_shares_depend_on_seed_and_user_but_not_on_the_place(bert, log):
    histories = [log.at(row) for row in (1, 11, 3)]

    def shares(some, seed=0, batch_size=32):
        explainer = Explainer(bert, "random", seed=seed, batch_size=batch_size)
        return [influence.values for influence in explainer.explain(some)]

    first = shares(histories)
    for a, b in zip(first, shares(histories[::-1], batch_size=2)[::-1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(first[0], first[1])  # two users with five events each
    assert not np.allclose(first[0], shares(histories, seed=1)[0])
    renamed = replace(histories[0], user_id="another")
    assert not np.allclose(first[0], shares([renamed])[0])


def test_recency_halves_with_every_step_into_the_past(bert, log):
    scores = Explainer(bert, "recency").explain(log.at(3)).values
    np.testing.assert_allclose(scores[:-1] / scores[1:], 0.5)


def test_popularity_shares_by_the_events_of_training(bert, log):
    history = log.at(5)
    counts = np.array([(log.items == item).sum() for item in history.items])
    scores = Explainer(bert, "popularity").explain(history).values
    np.testing.assert_allclose(scores, counts / counts.sum())
    assert len(set(scores)) > 1


def test_popularity_of_items_nobody_met_is_even_and_without_counts_an_error(bert, log):
    vocabulary = bert.encoder.vocabulary
    counts = vocabulary.counts
    try:
        vocabulary.counts = np.zeros_like(counts)
        scores = Explainer(bert, "popularity").explain(log.at(0)).values
        np.testing.assert_allclose(scores, 1 / len(scores))
        vocabulary.counts = None
        with pytest.raises(ExplanationError, match=r"counts\.npy"):
            Explainer(bert, "popularity").explain(log.at(0))
    finally:
        vocabulary.counts = counts


def test_item_similarity_shares_by_the_cosine_of_texts(bert, log):
    history, texts = log.at(5), bert.embeddings.words[bert.first_item :].double().numpy()
    cosines = texts @ texts[history.items].T  # (items, E)
    code = int(cosines.min(axis=1).argmin())
    target, own = log.catalogue.ids[code].as_py(), cosines[code]
    for wanted in (target, Contrast(target, "i4")):
        scores = Explainer(bert, "item_similarity").explain(history, wanted).values
        np.testing.assert_allclose(scores, own.clip(min=0) / own.clip(min=0).sum(), atol=1e-6)
    assert (own < 0).any()  # these got nothing
    assert (own > 0).sum() > 1


def test_an_item_is_most_similar_to_itself(bert):
    scores = Explainer(bert, "item_similarity").explain(typed("i9", "i3", "i4"), "i3").values
    assert scores.argmax() == 1


def test_nothing_is_similar_to_a_behaviour(bert, log):
    with pytest.raises(ExplanationError, match="target is a behavior"):
        Explainer(bert, "item_similarity").explain(log.at(0), "cart")


def test_without_text_vectors_no_item_is_similar(recurrence, log):
    with pytest.raises(ExplanationError, match=r"no language model has read.*recurrent\.words"):
        Explainer(recurrence, "item_similarity").explain(log.at(0))
