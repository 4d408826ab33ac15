import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from intervals import mean_interval, paired_bootstrap


def test_student_interval_of_three_runs():
    # sd 1, three runs: half width 4.303 / sqrt(3)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.4843, 4.4843), abs=1e-4)


def test_one_run_has_no_interval():
    with pytest.raises(ValueError, match="1 values"):
        mean_interval([0.1])


def test_bootstrap_draws_the_same_users_for_both():
    ours = np.random.default_rng(0).random(200)
    difference, ratio = paired_bootstrap(ours, ours / 2)
    assert ratio == pytest.approx((2, 2, 2))  # exact only when paired
    assert difference[1] < ours.mean() / 2 < difference[2]


def test_bootstrap_is_as_wide_as_the_standard_error_says():
    random = np.random.default_rng(1)
    ours, theirs = random.random(400), random.random(400)
    (value, low, high), _ = paired_bootstrap(ours, theirs)
    half = 1.96 * np.std(ours - theirs) / 20
    assert (value - low, high - value) == pytest.approx((half, half), rel=0.1)
