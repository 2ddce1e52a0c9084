"""Attention maps against their definition (tests/oracles/attention.py): values, gradients, limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from eyeline.errors import InputError
from eyeline.functional import attention_map
from oracles import attention as oracle

EXPONENTS = [1.0, 1.5, 2.0, 3.0, 4.0]
REDUCES = ["sum", "max"]
SHAPES = [(2, 3, 4, 4), (1, 5, 3, 6), (3, 1, 5, 2), (2, 4, 1, 1)]


def activation(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Signed random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def away_from_zero(a: Tensor) -> Tensor:
    """Signed, no entry within 0.2 of 0: finite differences never cross the kink of the absolute value."""
    return a + 0.2 * a.sign()


def as_leaf(a: Tensor) -> Tensor:
    return a.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def assert_close(actual: Tensor, expected: np.ndarray, rtol: float, atol: float) -> None:
    assert tuple(actual.shape) == expected.shape
    np.testing.assert_allclose(oracle.as_float64(actual), expected, rtol=rtol, atol=atol)


# --- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_map_is_the_definition(exponent: float, reduce: str, shape: tuple[int, ...], normalize: bool) -> None:
    # Pitfall 1: signed activations with odd and fractional exponents need the absolute value inside.
    a = activation(*shape)
    assert (a < 0).any()
    expected = oracle.attention_map(a, exponent, reduce, normalize)
    actual = attention_map(a, exponent, reduce, normalize)
    assert actual.dtype == torch.float64
    assert_close(actual, expected, rtol=1e-12, atol=1e-14)

    single = a.float()
    expected = oracle.attention_map(single, exponent, reduce, normalize)
    actual = attention_map(single, exponent, reduce, normalize)
    assert actual.dtype == torch.float32
    assert_close(actual, expected, rtol=2e-6, atol=1e-7)


def test_defaults_are_the_normalised_sum_of_squares() -> None:
    a = activation(2, 3, 4, 5)
    assert_close(attention_map(a), oracle.attention_map(a, 2.0, "sum", True), rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("layout", ["channels_last", "every other", "transposed", "expanded"])
def test_memory_layout_does_not_matter(layout: str, reduce: str) -> None:
    a = {
        "channels_last": activation(2, 3, 4, 6).to(memory_format=torch.channels_last),
        "every other": activation(4, 6, 8, 6)[::2, ::2, 1::2, ::3],
        "transposed": activation(6, 4, 3, 2).permute(3, 2, 1, 0),
        "expanded": activation(1, 3, 4, 1).expand(2, 3, 4, 5),
    }[layout]
    assert not a.is_contiguous()
    expected = oracle.attention_map(a, 3.0, reduce)
    leaf = as_leaf(a)
    actual = attention_map(leaf, 3.0, reduce)
    assert_close(actual, expected, rtol=1e-12, atol=1e-14)

    contiguous = as_leaf(a.contiguous())
    weights = activation(*actual.shape, seed=1)
    (gradient,) = torch.autograd.grad((actual * weights).sum(), leaf)
    (same,) = torch.autograd.grad((attention_map(contiguous, 3.0, reduce) * weights).sum(), contiguous)
    torch.testing.assert_close(gradient, same, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_activation_gives_a_float32_map(dtype: torch.dtype) -> None:
    a = activation(2, 3, 4, 5, dtype=dtype)
    for normalize in (True, False):
        actual = attention_map(a, 3.0, normalize=normalize)
        assert actual.dtype == torch.float32
        assert_close(actual, oracle.attention_map(a, 3.0, normalize=normalize), rtol=2e-6, atol=1e-7)


def test_the_activation_is_left_as_it_was() -> None:
    a = activation(2, 3, 4, 5)
    before = a.clone()
    attention_map(a)
    assert torch.equal(a, before)


# --- gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 3.0])
def test_first_and_second_derivatives_are_the_finite_differences(
    exponent: float, reduce: str, normalize: bool
) -> None:
    a = as_leaf(away_from_zero(activation(2, 2, 2, 3)))
    assert gradcheck(lambda x: attention_map(x, exponent, reduce, normalize), (a,))
    assert gradgradcheck(lambda x: attention_map(x, exponent, reduce, normalize), (a,))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reduce", REDUCES)
def test_vmap_maps_each_activation_and_its_gradient(reduce: str, normalize: bool) -> None:
    a = activation(3, 2, 4, 5, 6)
    a[1] *= 1e-9  # far from 1: another scale for each

    def total(x: Tensor) -> Tensor:
        return (attention_map(x, 3.0, reduce, normalize) ** 2).sum(0).max()

    for function in (total, torch.func.grad(total)):
        torch.testing.assert_close(torch.func.vmap(function)(a), torch.stack([function(x) for x in a]))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_gradient_of_the_maximum_reaches_only_the_strongest_channel(exponent: float, normalize: bool) -> None:
    a = as_leaf(activation(2, 5, 3, 4))
    q = attention_map(a, exponent, "max", normalize)
    (gradient,) = torch.autograd.grad((q * activation(*q.shape, seed=1)).sum(), a)
    strongest = torch.zeros_like(a).scatter_(1, a.detach().abs().argmax(dim=1, keepdim=True), 1.0).bool()
    assert (a[strongest] < 0).any(), "the strongest channel must be negative somewhere"
    assert torch.equal(gradient != 0, strongest)


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_gradient_of_the_plain_map_is_the_power_rule(exponent: float, reduce: str) -> None:
    a = as_leaf(activation(2, 3, 3, 4))
    (gradient,) = torch.autograd.grad(attention_map(a, exponent, reduce, normalize=False).sum(), a)
    values = oracle.as_float64(a)
    expected = exponent * np.abs(values) ** (exponent - 1) * np.sign(values)
    if reduce == "max":
        expected = np.where(np.abs(values) == np.abs(values).max(axis=1, keepdims=True), expected, 0.0)
    assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_exact_zeros_as_after_relu_have_gradient_zero(exponent: float, reduce: str) -> None:
    a = as_leaf(activation(2, 4, 3, 3).relu())
    zero = a.detach() == 0
    assert zero.any()
    q = attention_map(a, exponent, reduce)
    (gradient,) = torch.autograd.grad((q * activation(*q.shape, seed=1)).sum(), a)
    assert gradient.isfinite().all()
    assert (gradient[zero] == 0).all()


# --- what the formula promises --------------------------------------------------------------------------

activations = st.builds(
    lambda n, c, h, w, seed: activation(n, c, h, w, seed=seed),
    *(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6)),
)
exponents = st.one_of(st.sampled_from(EXPONENTS), st.floats(1.0, 6.0))
reduces = st.sampled_from(REDUCES)


@given(activations, exponents, reduces)
def test_map_is_non_negative_with_unit_norm(a: Tensor, exponent: float, reduce: str) -> None:
    q = attention_map(a, exponent, reduce)
    assert (q >= 0).all()
    np.testing.assert_allclose([oracle.norm(oracle.as_float64(row)) for row in q], 1.0, rtol=1e-12)


@given(activations, exponents, reduces, st.floats(-8, 8), st.booleans())
def test_map_ignores_scale_and_sign(
    a: Tensor, exponent: float, reduce: str, magnitude: float, negative: bool
) -> None:
    factor = 10.0**magnitude * (-1 if negative else 1)
    q, scaled = attention_map(a, exponent, reduce), attention_map(a * factor, exponent, reduce)
    torch.testing.assert_close(scaled, q, rtol=1e-11, atol=1e-14)


@given(activations, exponents, reduces, st.randoms(use_true_random=False))
def test_samples_and_channel_order_do_not_mix(a: Tensor, exponent: float, reduce: str, random) -> None:
    order = list(range(a.shape[1]))
    random.shuffle(order)
    q = attention_map(a, exponent, reduce)
    one_by_one = torch.cat([attention_map(sample[None, order], exponent, reduce) for sample in a])
    torch.testing.assert_close(q, one_by_one, rtol=1e-12, atol=1e-14)


@given(activations, exponents)
def test_repeating_the_channels_changes_only_the_scale(a: Tensor, exponent: float) -> None:
    """So the mean over channels is the same map as the sum, once normalised."""
    twice = torch.cat([a, a], dim=1)
    torch.testing.assert_close(
        attention_map(twice, exponent), attention_map(a, exponent), rtol=1e-12, atol=1e-14
    )
    plain = attention_map(a, exponent, normalize=False)
    torch.testing.assert_close(attention_map(twice, exponent, normalize=False), 2 * plain, rtol=1e-12, atol=0)


@given(activations, st.floats(1.0, 4.0), st.floats(0.5, 3.0), st.integers(1, 8))
def test_a_larger_exponent_concentrates_mass_on_the_strongest_positions(
    a: Tensor, exponent: float, more: float, count: int
) -> None:
    """The share of the top positions grows with p; one active channel a position, where sum = max."""

    def share_of_top(p: float) -> Tensor:
        mass = attention_map(a[:, :1], p).flatten(1).square()  # sums to 1
        order = a[:, 0].flatten(1).abs().argsort(dim=1, descending=True)
        return mass.gather(1, order)[:, :count].sum(dim=1)

    lower, higher = share_of_top(exponent), share_of_top(exponent + more)
    assert (higher >= lower - 1e-12).all()
    if count < a[0, 0].numel():
        assert ((higher > lower) | (higher > 1 - 1e-9)).all()


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_sum_favours_many_active_channels_and_maximum_a_single_strong_one(exponent: float) -> None:
    a = torch.zeros(1, 4, 1, 2, dtype=torch.float64)
    a[0, :, 0, 0] = torch.tensor([1.0, -1.0, 1.0, -1.0])  # four channels are on
    a[0, 2, 0, 1] = -1.5  # one channel is on, and stronger
    by_sum, by_max = attention_map(a, exponent, "sum")[0, 0], attention_map(a, exponent, "max")[0, 0]
    assert by_sum[0] > by_sum[1]
    assert by_max[0] < by_max[1]


# --- limits of the number formats -----------------------------------------------------------------------


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e25])
def test_map_is_exact_at_any_scale_of_float32(scale: float, exponent: float, reduce: str) -> None:
    a = activation(2, 3, 4, 5, dtype=torch.float32) * scale
    a[1] /= scale  # each sample has its own scale
    leaf = as_leaf(a)
    q = attention_map(leaf, exponent, reduce)
    assert_close(q, oracle.attention_map(a, exponent, reduce), rtol=2e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad((q * activation(*q.shape, seed=1)).sum(), leaf)
    assert gradient.isfinite().all()
    assert (gradient[0].abs().amax() * scale > 1e-3).item()


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_float64_keeps_its_own_range(scale: float, reduce: str) -> None:
    a = as_leaf(activation(2, 3, 4, 5) * scale)
    q = attention_map(a, 2.0, reduce)
    assert_close(q, oracle.attention_map(a, 2.0, reduce), rtol=1e-12, atol=1e-14)
    (gradient,) = torch.autograd.grad(q[:, 0, 0].sum(), a)
    assert gradient.isfinite().all()
    assert (gradient != 0).any()


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float16, 256.0), (torch.float16, 60000.0), (torch.bfloat16, 1e30)]
)
def test_pitfall_2_powers_do_not_overflow_in_half_precision(
    dtype: torch.dtype, size: float, reduce: str
) -> None:
    a = (activation(2, 3, 4, 5).clamp(-1, 1) * size).to(dtype)
    assert torch.isinf(a.float().abs().amax().to(torch.float16) ** 2)
    leaf = as_leaf(a)
    q = attention_map(leaf, 4.0, reduce)
    assert_close(q, oracle.attention_map(a, 4.0, reduce), rtol=2e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad(q.flatten(1)[:, 0].sum(), leaf)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("reduce", REDUCES)
def test_pitfall_2_autocast_changes_nothing(reduce: str, dtype: torch.dtype) -> None:
    leaf = as_leaf(activation(2, 8, 4, 5, dtype=dtype))
    weights = activation(2, 4, 5, seed=1, dtype=torch.float32)
    outside = attention_map(leaf, 3.0, reduce)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = attention_map(leaf, 3.0, reduce)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    (expected,) = torch.autograd.grad((outside * weights).sum(), leaf)
    (actual,) = torch.autograd.grad((inside * weights).sum(), leaf)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_pitfall_3_an_all_zero_sample_has_a_zero_map_and_gradient(
    exponent: float, reduce: str, normalize: bool, dtype: torch.dtype
) -> None:
    a = activation(2, 3, 4, 5, dtype=dtype)
    a[0] = 0
    leaf = as_leaf(a)
    q = attention_map(leaf, exponent, reduce, normalize)
    (gradient,) = torch.autograd.grad((q * activation(*q.shape, seed=1)).sum(), leaf)
    assert (q[0] == 0).all()
    assert (gradient[0] == 0).all()
    assert gradient[1].isfinite().all()
    assert (gradient[1] != 0).any()


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.99, 0.5, 0.0, -2.0, float("nan")])
def test_an_exponent_below_one_is_refused(exponent: float) -> None:
    with pytest.raises(InputError, match="exponent"):
        attention_map(activation(2, 3, 4, 5), exponent)


@pytest.mark.parametrize(("given", "nearest"), [("summ", "sum"), ("maxi", "max"), ("Sum", "sum")])
def test_an_unknown_reduce_is_answered_with_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f"{given}.*did you mean '{nearest}'"):
        attention_map(activation(2, 3, 4, 5), 2.0, given)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 7), (1, 2, 3, 4, 5)])
def test_an_activation_that_is_not_4d_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        attention_map(activation(*shape))
