"""Summaries, intervals and tests of a study: against scipy and plain references, and their coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtr

from eyeline.studies.statistics import correct, holm, paired_difference, summary

Answers = tuple[np.ndarray, np.ndarray]


def answers(seeds: int, images: int, seed: int) -> Answers:
    """Two methods whose networks are often right on the same images."""
    random = np.random.default_rng(seed)
    easy = random.random(images)
    first, second = (random.random((2, seeds, images)) < easy).astype(bool)
    return first | (random.random((seeds, 1)) < 0.2), second


def reference(right: np.ndarray, baseline: np.ndarray) -> tuple[float, float, float]:
    """Mean, standard error and degrees of freedom, by the definitions of a two-way analysis of variance."""
    d = right.astype(float) - baseline
    seeds, images = d.shape
    mean, rows, columns = d.mean(), d.mean(1), d.mean(0)
    ms_s = images * sum((row - mean) ** 2 for row in rows) / (seeds - 1)
    ms_i = seeds * sum((column - mean) ** 2 for column in columns) / (images - 1)
    rest = [
        (d[s, i] - rows[s] - columns[i] + mean) ** 2
        for s, i in itertools.product(range(seeds), range(images))
    ]
    ms_e = sum(rest) / ((seeds - 1) * (images - 1))
    images_alone = max(0, ms_i - ms_e)
    total = ms_s + images_alone
    degrees = total**2 / (ms_s**2 / (seeds - 1) + images_alone**2 / (images - 1))
    return mean, math.sqrt(total / d.size), degrees


@given(st.integers(2, 8), st.integers(2, 60), st.integers(0, 1000))
def test_interval_is_that_of_two_crossed_samples(seeds: int, images: int, seed: int) -> None:
    right, baseline = answers(seeds, images, seed)
    found = paired_difference(right, baseline)
    assert (found["seeds"], found["images"]) == (seeds, images)
    assert found["mean"] == pytest.approx(right.mean() - baseline.mean(), abs=1e-12)
    if np.ptp(right.sum(1) - baseline.sum(1)) == 0:
        assert {found[key] for key in ("low", "high", "p", "p_flips")} == {None}
        return
    mean, error, degrees = reference(right, baseline)
    half = stats.t.ppf(0.975, degrees) * error
    assert found["low"] == pytest.approx(mean - half, abs=1e-9)
    assert found["high"] == pytest.approx(mean + half, abs=1e-9)
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(mean) / error, degrees), abs=1e-9)
    touching = paired_difference(
        right, baseline, confidence=1 - found["p"]
    )  # the test is that of the interval
    assert min(abs(touching["low"]), abs(touching["high"])) == pytest.approx(0, abs=1e-9)


def test_images_that_are_all_alike_leave_the_paired_t_test() -> None:
    """Errors that fall anywhere: then only the seeds vary, and the interval is the usual one."""
    right, baseline = np.zeros((2, 4, 40), dtype=bool)
    for seed, count in enumerate((5, 8, 6, 9)):  # other images each time
        right[seed, 10 * seed : 10 * seed + count] = True
    found = paired_difference(right, baseline)
    usual = stats.ttest_rel(right.mean(1), baseline.mean(1))
    assert found["low"] == pytest.approx(usual.confidence_interval().low, abs=1e-12)
    assert found["p"] == pytest.approx(usual.pvalue, abs=1e-12)


def test_one_seed_has_no_interval() -> None:
    right, baseline = answers(1, 20, 0)
    found = paired_difference(right, baseline)
    assert found == {
        **{"mean": pytest.approx(right.mean() - baseline.mean()), "seeds": 1, "images": 20},
        **dict.fromkeys(("low", "high", "p", "p_holm", "p_flips")),
    }


def test_differences_that_do_not_vary_have_no_interval() -> None:
    """Two seeds on few images, or the same network twice: of no width, it would call a chance proven."""
    right, baseline = np.zeros((2, 2, 10), dtype=bool)
    assert paired_difference(right, right)["low"] is None
    right[0, :2] = right[1, 5:7] = True
    found = paired_difference(right, baseline)
    assert (found["mean"], found["low"], found["high"], found["p"]) == (0.2, None, None, None)


# --- tests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 5, 6, 9])
def test_sign_flips_are_those_of_scipy(seeds: int) -> None:
    for seed in range(8):
        right, baseline = answers(seeds, 50, seed)
        differences = right.sum(1) - baseline.sum(1)
        if np.ptp(differences) == 0:
            continue
        exact = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=10**5)
        assert paired_difference(right, baseline)["p_flips"] == pytest.approx(exact.pvalue, abs=1e-12)


def test_five_seeds_cannot_be_significant_and_six_can() -> None:
    for seeds, least in ((5, 0.0625), (6, 0.03125)):
        right = np.zeros((seeds, 100), dtype=bool)
        for seed in range(seeds):
            right[seed, : 50 + seed] = True
        assert paired_difference(right, np.zeros_like(right))["p_flips"] == least


def test_many_seeds_are_flipped_by_chance() -> None:
    right, baseline = answers(15, 60, 3)
    differences = right.sum(1) - baseline.sum(1)
    sums = np.array([0])
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    exact = (abs(sums) >= abs(differences.sum())).mean()
    found = paired_difference(right, baseline)["p_flips"]
    assert 0.01 < exact < 0.99
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 2**14))
    assert found == paired_difference(right, baseline)["p_flips"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p: list[float]) -> None:
    """A hypothesis falls if every set of hypotheses that holds it does, by Bonferroni."""
    expected = [
        max(
            min(1, len(chosen) * min(p[k] for k in chosen))
            for size in range(1, len(p) + 1)
            for chosen in itertools.combinations(range(len(p)), size)
            if one in chosen
        )
        for one in range(len(p))
    ]
    assert holm(p) == pytest.approx(expected, abs=1e-12)


def test_only_what_has_a_p_is_corrected_for() -> None:
    differences = [{"p": 0.01}, {"p": None, "p_holm": None}, {"p": 0.04}]
    correct(differences)
    assert [each["p_holm"] for each in differences] == [0.02, None, 0.04]
    correct([])


# --- what an interval of 95 % covers ------------------------------------------------------------------------

# standard deviations, on the scale of the probit: of images (common to both networks, and of one), of seeds
# (common, and of one), of the rest
VARIED = {
    "images vary most": (1.6, 0.7, 0.01, 0.01, 0.6),
    "seeds and images vary": (1.6, 0.5, 0.02, 0.05, 0.7),
    "seeds vary most": (1.6, 0.2, 0.05, 0.2, 0.6),
}


def simulated(parts: tuple[float, ...], seeds: int, images: int, random: np.random.Generator) -> Answers:
    """A study on new images with new seeds: right where a sum of normal variables is above 0."""
    image, own_image, of_seed, own_seed, rest = parts
    common = image * random.standard_normal(images) + of_seed * random.standard_normal((seeds, 1))
    networks = [
        level
        + common
        + own_image * random.standard_normal(images)
        + own_seed * random.standard_normal((seeds, 1))
        + rest * random.standard_normal((seeds, images))
        > 0
        for level in (1.75, 1.6)
    ]
    return networks[0], networks[1]


@pytest.mark.parametrize("kind", VARIED)
def test_the_interval_covers_what_it_says(kind: str) -> None:
    """Of 1,000 studies of six seeds and 400 images 93 to 97 % (0.95 ± three standard errors) have the true
    difference in their interval. Those over seeds alone have it less often, and those of a bootstrap over
    both are too wide where images vary, too narrow where seeds do."""
    spread = math.hypot(*VARIED[kind])
    truth = ndtr(1.75 / spread) - ndtr(1.6 / spread)
    random = np.random.default_rng(0)
    some_seeds, some_images = (random.multinomial(n, np.full(n, 1 / n), 400) / n for n in (6, 400))
    covered: dict[str, list[bool]] = {"ours": [], "t over seeds": [], "BCa over seeds": [], "bootstrap": []}
    for study in range(1000):
        right, baseline = simulated(VARIED[kind], 6, 400, random)
        found = paired_difference(right, baseline)
        pairs = right.mean(1) - baseline.mean(1)
        half = stats.t.ppf(0.975, 5) * stats.sem(pairs)
        intervals = {"ours": (found["low"], found["high"])}
        intervals["t over seeds"] = pairs.mean() - half, pairs.mean() + half
        if study < 300:
            resampled = (some_seeds @ (right.astype(float) - baseline) * some_images).sum(1)
            intervals["bootstrap"] = tuple(np.quantile(resampled, (0.025, 0.975)))
        if study < 100:
            resampled = stats.bootstrap((pairs,), np.mean, method="BCa", n_resamples=499, random_state=0)
            intervals["BCa over seeds"] = resampled.confidence_interval
        for name, (low, high) in intervals.items():
            covered[name].append(low is None or low <= truth <= high)
    share = {name: np.mean(each) for name, each in covered.items()}
    assert 0.93 <= share["ours"] <= 0.97
    assert share["BCa over seeds"] < 0.87
    if kind == "seeds vary most":
        assert share["bootstrap"] < 0.93
    else:
        assert share["t over seeds"] < {"seeds and images vary": 0.91, "images vary most": 0.76}[kind]
        assert share["bootstrap"] > 0.955


def test_summary_of_one() -> None:
    assert summary([0.5]) == {"mean": 0.5, "std": None}


@given(st.lists(st.floats(0, 1).map(lambda x: round(x, 4)), min_size=2, max_size=12))
def test_summary(values: list[float]) -> None:
    found = summary(values)
    assert found["mean"] == pytest.approx(np.mean(values), abs=1e-12)
    assert found["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-9)
