"""Distances between sets of images, against closed forms, brute force and another library."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.testing import assert_close

from diffusion_core.evaluation import (
    Estimate,
    Moments,
    agreement,
    estimate,
    frechet_distance,
    kernel_distance,
    moments,
    moments_at_shares,
    nearest_neighbours,
)
from tests.conftest import normal

F64 = torch.float64


def gaussian(mean, cov) -> Moments:
    return Moments(torch.as_tensor(mean, dtype=F64), torch.as_tensor(cov, dtype=F64), 100)


def random_moments(dim: int, seed: int) -> Moments:
    factor = normal(dim, dim, seed=seed)
    return gaussian(normal(dim, seed=seed + 1), factor @ factor.T + 0.1 * torch.eye(dim))


# --- moments ---


def test_moments_by_hand():
    """The mean, and the covariance with N - 1 in the denominator."""
    found = moments(torch.tensor([[0.0, 2.0], [2.0, 2.0], [4.0, 8.0]]))
    assert_close(found.mean, torch.tensor([2.0, 4.0], dtype=F64), rtol=0, atol=1e-12)
    assert_close(found.cov, torch.tensor([[4.0, 6.0], [6.0, 12.0]], dtype=F64), rtol=0, atol=1e-12)
    assert found.n == 3
    assert found.mean.dtype == found.cov.dtype == F64


def test_moments_of_one_feature_are_matrices_too():
    found = moments(torch.tensor([[1.0], [3.0]]))
    assert found.cov.shape == (1, 1)
    assert found.cov.item() == 2.0


def test_moments_keep_their_digits():
    """Features far from 0, given in float32: accumulated in float64."""
    features = (1000 + normal(5000, 2)).float()
    assert_close(
        moments(features).cov,
        torch.from_numpy(np.cov(features.double().numpy().T)),
        rtol=0,
        atol=1e-9,
    )


@pytest.mark.parametrize("shape", [(1, 3), (5,), (2, 3, 4)])
def test_moments_refuse_what_has_none(shape):
    with pytest.raises(ValueError, match=r"expected \(N, D\) with N >= 2"):
        moments(torch.zeros(shape))


# --- moments at given shares ---


def test_moments_at_shares_by_hand():
    """Label 0 once, label 1 twice, each at a half: weights 1/2, 1/4, 1/4, whose squares sum to 3/8."""
    features, y = torch.tensor([[0.0, 1.0], [2.0, 1.0], [6.0, 5.0]]), torch.tensor([0, 1, 1])
    found = moments_at_shares(features, y, torch.tensor([10, 10]))
    assert_close(found.mean, torch.tensor([2.0, 2.0], dtype=F64), rtol=0, atol=1e-12)
    cov = torch.tensor([[6.0, 4.0], [4.0, 3.0]], dtype=F64) / (5 / 8)
    assert_close(found.cov, cov, rtol=0, atol=1e-12)
    assert found.n == 3


def test_at_the_shares_that_are_there_they_are_the_moments():
    features, y = (3 + normal(40, 3)).float(), torch.arange(40) % 7 % 4
    found = moments_at_shares(features, y, torch.bincount(y, minlength=5))  # nobody has label 4
    for value, expected in zip(found, moments(features), strict=True):
        assert_close(torch.as_tensor(value), torch.as_tensor(expected), rtol=0, atol=1e-12)


def test_at_equal_shares_a_label_counts_the_same_however_often_it_is_drawn():
    """Each image of label 1 four times over: the mean stays what it is."""
    features, y = normal(20, 3), torch.arange(20) % 2
    often = torch.cat([features, *[features[y == 1]] * 3])
    found = moments_at_shares(often, torch.cat([y, torch.ones(30).long()]), torch.ones(2))
    expected = moments_at_shares(features, y, torch.ones(2))
    assert_close(found.mean, expected.mean, rtol=0, atol=1e-12)


def test_the_covariance_at_shares_is_unbiased():
    """Over all draws with replacement from a small set, its mean is the set's own covariance."""
    source = normal(3, 2)
    draws = [list(i) for i in itertools.product(range(3), repeat=4)]
    y = torch.zeros(4).long()
    each = [moments_at_shares(source[i], y, torch.ones(1)).cov for i in draws]
    assert_close(torch.stack(each).mean(0), torch.cov(source.T, correction=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "y", "shares", "said"),
    [
        (1, [0], [1.0], r"expected \(N, D\) with N >= 2"),
        (3, [0, 1], [1.0, 1.0], r"y have shape \(2,\)"),
        (2, [0, 2], [1.0, 1.0], r"y: 2 is out of range, expected 0\.\.1"),
        (2, [0, 1], [1.0, 0.0], "a label of y has none"),
    ],
)
def test_moments_at_shares_refuse(n, y, shares, said):
    with pytest.raises(ValueError, match=said):
        moments_at_shares(torch.zeros(n, 2), torch.tensor(y), torch.tensor(shares))


# --- Fréchet distance ---


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_frechet_is_the_formula_with_scipys_matrix_root(dim):
    """Heusel et al. eq. 6, the root of the product itself."""
    a, b = random_moments(dim, 1), random_moments(dim, 5)
    root = scipy.linalg.sqrtm(a.cov.numpy() @ b.cov.numpy())
    cov = np.trace(a.cov.numpy() + b.cov.numpy() - 2 * root.real)
    expected = float((a.mean - b.mean).square().sum()) + float(cov)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_in_one_dimension():
    """(m_a - m_b)^2 + (s_a - s_b)^2."""
    assert frechet_distance(gaussian([1.0], [[4.0]]), gaussian([4.0], [[0.25]])) == pytest.approx(
        9 + 1.5**2, abs=1e-12
    )


def test_frechet_of_commuting_covariances():
    """Diagonal: one dimension after the other."""
    a = gaussian([0.0, 0.0, 1.0], torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=F64)))
    b = gaussian([0.0, 2.0, 1.0], torch.diag(torch.tensor([9.0, 4.0, 0.0], dtype=F64)))
    assert frechet_distance(a, b) == pytest.approx(2**2 + 2**2 + 3**2, abs=1e-9)


def test_frechet_is_the_squared_distance_of_the_best_transport():
    """For N(0, A) and N(0, M A M) with M symmetric positive, the best map is M: E|x - Mx|^2."""
    a, m = random_moments(4, 2).cov, random_moments(4, 8).cov
    gap = torch.eye(4, dtype=F64) - m
    expected = (gap @ a @ gap).trace().item()
    found = frechet_distance(gaussian(torch.zeros(4), a), gaussian(torch.zeros(4), m @ a @ m))
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_of_equal_moments_is_zero_and_never_below():
    for seed in range(5):
        a = random_moments(6, seed)
        assert 0 <= frechet_distance(a, a) < 1e-9
    flat = gaussian(torch.zeros(3), torch.zeros(3, 3))
    assert frechet_distance(flat, flat) == 0


def test_frechet_of_a_singular_covariance():
    """Fewer samples than dimensions: the root exists all the same."""
    few = moments(normal(3, 8))
    assert 0 <= frechet_distance(few, few) < 1e-9
    point = gaussian(torch.zeros(8), torch.zeros(8, 8))
    expected = (few.mean.square().sum() + few.cov.trace()).item()
    assert frechet_distance(few, point) == pytest.approx(expected, abs=1e-9)


def test_frechet_refuses_other_dimensions():
    with pytest.raises(ValueError, match="features of 2 and 3 dimensions"):
        frechet_distance(random_moments(2, 0), random_moments(3, 0))


# --- kernel distance ---


def naive_kernel_distance(x, y):
    def k(u, v):
        return (sum(a * b for a, b in zip(u, v)) / len(u) + 1) ** 3

    x, y = x.tolist(), y.tolist()
    within_x = [k(u, v) for i, u in enumerate(x) for j, v in enumerate(x) if i != j]
    within_y = [k(u, v) for i, u in enumerate(y) for j, v in enumerate(y) if i != j]
    between = [k(u, v) for u in x for v in y]
    return sum(
        w * sum(values) / len(values) for w, values in ((1, within_x), (1, within_y), (-2, between))
    )


@pytest.mark.parametrize(("n", "m", "dim"), [(2, 2, 1), (4, 7, 3), (9, 5, 4)])
def test_kernel_distance_is_the_double_loop(n, m, dim):
    x, y = normal(n, dim), 0.5 * normal(m, dim, seed=1) + 0.3
    assert kernel_distance(x, y) == pytest.approx(naive_kernel_distance(x, y), rel=1e-10)
    assert kernel_distance(y, x) == pytest.approx(naive_kernel_distance(x, y), rel=1e-10)


def test_kernel_distance_is_unbiased():
    """Every pair of draws with replacement from a small set, averaged: exactly the distance between
    the two distributions, however few the draws."""
    x, y = normal(3, 2), normal(3, 2, seed=1) + 1
    every = list(itertools.product(range(3), repeat=2))
    mean = (
        sum(kernel_distance(x[list(i)], y[list(j)]) for i, j in itertools.product(every, every))
        / len(every) ** 2
    )
    k = lambda u, v: ((u @ v.T / 2 + 1) ** 3).mean()
    population = (k(x, x) + k(y, y) - 2 * k(x, y)).item()
    assert mean == pytest.approx(population, rel=1e-10)


def test_kernel_distance_can_be_negative():
    found = [kernel_distance(normal(20, 3, seed=i), normal(20, 3, seed=i + 50)) for i in range(20)]
    assert min(found) < 0 < max(found)


@pytest.mark.parametrize(
    ("x", "y"),
    [((4, 3), (4, 2)), ((1, 3), (4, 3)), ((4, 3), (1, 3)), ((4,), (4,)), ((4, 3), (4, 3, 1))],
)
def test_kernel_distance_refuses(x, y):
    with pytest.raises(ValueError, match="with N, M >= 2"):
        kernel_distance(torch.zeros(x), torch.zeros(y))


# --- nearest neighbours ---


def test_nearest_neighbours_by_brute_force():
    """In chunks that do not divide the number of images."""
    x, data = normal(7, 1, 3, 2).float(), normal(11, 1, 3, 2, seed=1).float()
    distance, index = nearest_neighbours(x, data, chunk=3)
    assert distance.shape == index.shape == (7,)
    assert index.dtype == torch.int64
    for i in range(7):
        each = [math.dist(x[i].flatten().tolist(), other.flatten().tolist()) for other in data]
        assert index[i].item() == int(np.argmin(each))
        assert distance[i].item() == pytest.approx(min(each), rel=1e-5)


def test_a_copy_is_found():
    data = (
        torch.randint(0, 256, (300, 1, 28, 28), generator=torch.Generator().manual_seed(3)) / 127.5
        - 1
    )
    distance, index = nearest_neighbours(data[::3], data)
    assert index.tolist() == list(range(0, 300, 3))
    assert distance.max() == 0


def test_nearest_neighbours_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"\(1, 4, 4\) cannot be compared"):
        nearest_neighbours(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5))


# --- agreement, estimates ---


def test_agreement_counts():
    assert agreement(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 0])) == 0.75
    assert agreement(torch.tensor([1, 2]), torch.tensor([1, 2])) == 1.0


def test_agreement_refuses_other_shapes():
    with pytest.raises(ValueError, match="same shape"):
        agreement(torch.zeros(3), torch.zeros(3, 1))


def test_estimate_is_mean_and_sample_standard_deviation():
    found = estimate([1.0, 2.0, 6.0])
    assert found == Estimate(3.0, pytest.approx(math.sqrt(7)), 3)
    assert estimate([1.0, 3.0]) == Estimate(2.0, pytest.approx(math.sqrt(2)), 2)
    assert str(Estimate(0.98765, 0.00123, 3)) == "0.988 ± 0.001 (n = 3)"


@pytest.mark.parametrize("values", [[], [1.0]])
def test_estimate_wants_two(values):
    with pytest.raises(ValueError, match="at least two seeds"):
        estimate(values)
