"""Reference scores that know nothing of the model."""

from dataclasses import replace

import numpy as np

from llm_influence.attribution.explainer import Explainer


def test_random_shares_depend_on_seed_and_user_but_not_on_the_place(bert, log):
    histories = [log.at(row) for row in (1, 11, 3)]

    def shares(some, seed=0, batch_size=32):
        explainer = Explainer(bert, "random", seed=seed, batch_size=batch_size)
        return [influence.scores for influence in explainer.explain(some)]

    first = shares(histories)
    for a, b in zip(first, shares(histories[::-1], batch_size=2)[::-1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(first[0], first[1])  # two users with five events each
    assert not np.allclose(first[0], shares(histories, seed=1)[0])
    renamed = replace(histories[0], user_id="another")
    assert not np.allclose(first[0], shares([renamed])[0])


def test_recency_halves_with_every_step_into_the_past(bert, log):
    scores = Explainer(bert, "recency").explain(log.at(3)).scores
    np.testing.assert_allclose(scores[:-1] / scores[1:], 0.5)
