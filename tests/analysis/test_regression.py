"""The streamed regression is the one that statsmodels fits to the whole design at once."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from llm_influence.analysis.levels import Batch
from llm_influence.analysis.regression import Fit, fit, gather, interactions

SIZES = (3, 4, 2)


def data(seed=0, users=60, *, pair=0.0):
    """Events of users of different lengths; a user's part makes their events alike."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), random.integers(1, 30, size=users))
    codes = np.stack([random.integers(size, size=len(user)) for size in SIZES], axis=1)
    codes[:, 2] = (user % 5 == 0).astype(int)
    y = 0.4 * codes[:, 0] + random.normal(size=users)[user] + random.normal(size=len(user))
    y += pair * (codes[:, 0] == 1) * (codes[:, 1] == 2)
    return Batch(user, codes.astype(np.uint8), y)


def cut(batch, users):
    """The same events in batches of some users each."""
    pieces = [batch.user // users == place for place in range(batch.user.max() // users + 1)]
    return [Batch(batch.user[p], batch.codes[p], batch.response[p]) for p in pieces]


def fitted(batch, size=7) -> Fit:
    pieces = cut(batch, size)
    return fit(gather(pieces, SIZES), pieces, len(np.unique(batch.user)))


def whole(batch, formula):
    frame = pd.DataFrame({f"f{n}": batch.codes[:, n] for n in range(3)})
    model = smf.ols(formula, frame.assign(y=batch.response))
    return model.fit(cov_type="cluster", cov_kwds={"groups": batch.user})


def test_effects_and_clustered_errors_are_those_of_statsmodels():
    batch = data()
    reference = whole(batch, "y ~ C(f0, Sum) + C(f1) + C(f2)")
    values, errors = fitted(batch).effects()
    # Differences of two levels do not depend on what effects are measured against.
    assert values[4] - values[3] == pytest.approx(reference.params["C(f1)[T.1]"])
    contrast = fitted(batch)
    first = contrast.moments.shares[7:9]
    gap = reference.params["C(f2)[T.1]"]
    assert values[7:9] == pytest.approx([-gap * first[1], gap * first[0]])
    assert errors[7:9] == pytest.approx(reference.bse["C(f2)[T.1]"] * first[::-1])
    assert contrast.r_squared == pytest.approx(reference.rsquared)


def test_the_answer_does_not_depend_on_the_size_of_batches():
    batch = data()
    many, one = fitted(batch, 5).effects(), fitted(batch, 10**6).effects()
    np.testing.assert_allclose(many, one, rtol=1e-9, atol=1e-12)


def test_a_factor_told_by_others_has_no_effect_of_its_own():
    batch = data()
    codes = batch.codes.copy()
    codes[:, 2] = codes[:, 0] > 0
    found = fitted(Batch(batch.user, codes, batch.response))
    values, _ = found.effects()
    assert np.isfinite(values[:7]).all()
    assert np.isnan(found.wald(2))


def test_factors_that_do_nothing_are_seldom_said_to_matter():
    """False alarms at 5%, over 200 draws: the binomial's upper end is 17."""
    false, found = 0, 0
    for seed in range(200):
        one = fitted(data(seed, users=40), 10**6)
        false += one.wald(1) < 0.05
        found += one.wald(0) < 0.05
    assert false <= 17
    assert found >= 190


def test_a_pair_is_tested_and_sized_as_in_the_regression_that_holds_it():
    batch = data(users=300, pair=1.5)
    one = fitted(batch)
    strong, none = interactions(one, cut(batch, 41), [(0, 1), (0, 2)])
    assert strong.p_value < 1e-4
    assert none.p_value > 0.01
    reference = whole(batch, "y ~ C(f0) * C(f1) + C(f2)")
    grid = strong.effects

    def second_difference(a, b):
        return grid[a, b] - grid[a, 0] - grid[0, b] + grid[0, 0]

    for a in (1, 2):
        for b in (1, 2, 3):
            wanted = reference.params[f"C(f0)[T.{a}]:C(f1)[T.{b}]"]
            assert second_difference(a, b) == pytest.approx(wanted)
    low, high = strong.spread[1:]
    true = 1.5 * np.sqrt(2 / 9 * 3 / 16)  # of a product of two centred indicators
    assert low < true < high


def test_the_test_of_a_pair_is_the_one_of_dense_matrices():
    batch = data(pair=0.5)
    (found,) = interactions(fitted(batch), cut(batch, 41), [(1, 2)])
    dummies = [np.eye(size)[batch.codes[:, n]] for n, size in enumerate(SIZES)]
    x = np.concatenate([np.ones((len(batch.user), 1)), *(d[:, 1:] for d in dummies)], axis=1)
    z = (dummies[1][:, :, None] * dummies[2][:, None, :]).reshape(len(batch.user), -1)
    residuals = batch.response - x @ np.linalg.lstsq(x, batch.response)[0]
    net = z - x @ np.linalg.lstsq(x, z)[0]
    users = np.eye(batch.user.max() + 1)[batch.user]
    scores = users.T @ (net * residuals[:, None])
    count = len(scores)
    covariance = count / (count - 1) * scores.T @ scores
    rank = 3  # of 4 x 2 cells beside the effects of both
    total = scores.sum(axis=0)
    inverse = np.linalg.pinv(covariance, rcond=1e-9, hermitian=True)
    scaled = total @ inverse @ total * (count - rank) / (rank * (count - 1))
    assert found.p_value == pytest.approx(stats.f.sf(scaled, rank, count - rank), rel=1e-6)
