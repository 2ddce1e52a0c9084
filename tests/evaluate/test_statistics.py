"""Summaries and paired intervals, against scipy and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eyeline.evaluate.statistics import paired_difference, summary

accuracies = st.floats(0, 1).map(lambda x: round(x, 4))


@given(
    st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=12), st.sampled_from([0.9, 0.95, 0.99])
)
def test_interval_is_that_of_a_paired_t_test(pairs: list[tuple[float, float]], confidence: float) -> None:
    values, baseline = (list(side) for side in zip(*pairs, strict=True))
    found = paired_difference(values, baseline, confidence)
    assert found["seeds"] == len(pairs)
    assert found["mean"] == pytest.approx(np.mean(values) - np.mean(baseline), abs=1e-12)
    differences = np.subtract(values, baseline)
    if np.ptp(differences) < 1e-9:  # scipy has no interval where nothing varies
        assert (found["low"], found["high"]) == (None, None)
        return
    interval = stats.ttest_rel(values, baseline).confidence_interval(confidence)
    assert found["low"] == pytest.approx(interval.low, abs=1e-9)
    assert found["high"] == pytest.approx(interval.high, abs=1e-9)


def test_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1/√3, t(0.975, 2) = 4.302653."""
    found = paired_difference([1, 4, 6], [0, 2, 3])
    assert found["mean"] == 2
    assert found["low"] == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-6)
    assert found["high"] == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-6)


def test_one_pair_has_no_interval() -> None:
    assert paired_difference([0.75], [0.5]) == {"mean": 0.25, "low": None, "high": None, "seeds": 1}


def test_differences_that_do_not_vary_have_no_interval() -> None:
    """Two seeds on a hundred images: of no width, it would call a chance proven."""
    found = paired_difference([0.81, 0.82], [0.80, 0.81])
    assert found == {"mean": pytest.approx(0.01), "low": None, "high": None, "seeds": 2}


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        paired_difference([1.0, 2.0], [1.0])


@given(st.lists(accuracies, min_size=2, max_size=12))
def test_summary(values: list[float]) -> None:
    found = summary(values)
    assert found["mean"] == pytest.approx(np.mean(values), abs=1e-12)
    assert found["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_summary_of_one() -> None:
    assert summary([0.5]) == {"mean": 0.5, "std": None}
