"""The exact models, against automatic differentiation, simulation and integration."""

import math

import pytest
import torch
from torch.testing import assert_close

from diffusion_core.ddpm import q_sample
from diffusion_core.exact import GaussianMixture
from tests.conftest import normal

F64 = torch.float64


@pytest.mark.parametrize("t", [0, 1, 10, 300.5, 1000])
def test_the_density_is_the_sum_of_the_noised_components(schedule, mixture, t):
    x = normal(5, 2)
    a = schedule.alpha_bar_at(t).item()
    total = torch.zeros(5, dtype=F64)
    for w, m, s in zip(mixture.weights, mixture.means, mixture.stds, strict=True):
        v = a * s**2 + 1 - a
        square = ((x - math.sqrt(a) * m) ** 2).sum(1)
        total += w * torch.exp(-0.5 * square / v) / (2 * math.pi * v)
    assert_close(
        mixture.log_prob(schedule)(x, t).exp(), total, rtol=0, atol=1e-10 * (1 + total.max().item())
    )


def test_the_density_integrates_to_1(linear):
    weights = torch.tensor([0.4, 0.6], dtype=F64)
    one = GaussianMixture(weights, torch.tensor([[-1.0], [1.0]]), torch.tensor([0.2, 0.1]))
    x = torch.linspace(-8, 8, 40_001, dtype=F64)[:, None]
    for t in (1, 200, 1000):
        total = torch.trapezoid(one.log_prob(linear)(x, t).exp(), x[:, 0])
        assert total.item() == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("t", [1, 10, 500, 1000])
def test_the_score_is_the_gradient(schedule, mixture, t):
    x = normal(6, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_prob(schedule)(x, t).sum(), x)
    assert_close(mixture.score(schedule)(x.detach(), t), gradient, rtol=0, atol=1e-7)


def test_a_components_score_is_its_own_gradient(linear, mixture):
    alone = GaussianMixture(torch.ones(1), mixture.means[1:2], mixture.stds[1:2])
    x, t = normal(6, 2), torch.tensor([1, 5, 50, 300, 700, 1000])
    assert_close(mixture.score(linear, 1)(x, t), alone.score(linear)(x, t), rtol=0, atol=1e-12)
    assert_close(
        mixture.eps_model(linear, 1)(x, t), alone.eps_model(linear)(x, t), rtol=0, atol=1e-12
    )


def test_eps_is_minus_the_score_times_the_noise(schedule, mixture):
    x, t = normal(3, 2), torch.tensor([1, 50, 1000])
    noise = (1 - schedule.alpha_bar[t]).sqrt()[:, None]
    assert_close(
        mixture.eps_model(schedule)(x, t),
        -noise * mixture.score(schedule)(x, t),
        rtol=0,
        atol=1e-12,
    )


def test_eps_is_the_expected_noise(linear, mixture):
    """E[eps | x_t] by weighting simulated pairs near one x_t."""
    t, n = 400, 400_000
    generator = torch.Generator().manual_seed(0)
    x_0 = mixture.sample(n, generator)
    eps = torch.randn(n, 2, generator=generator, dtype=F64)
    x_t = q_sample(x_0, t, eps, linear)
    at = torch.tensor([[0.3, 0.2]], dtype=F64)
    near = ((x_t - at) ** 2).sum(1) < 0.05**2
    mean, error = eps[near].mean(0), eps[near].std(0) / math.sqrt(int(near.sum()))
    exact = mixture.eps_model(linear)(at, t)[0]
    assert near.sum() > 100
    assert ((mean - exact).abs() < 4 * error + 0.02).all()


def test_the_posterior_is_bayes_rule(linear, mixture):
    x, t = normal(4, 2), torch.tensor([0, 5, 300, 1000])
    posterior = torch.stack([mixture.log_posterior(linear, k)(x, t) for k in range(3)], 1).exp()
    assert_close(posterior.sum(1), torch.ones(4, dtype=F64), rtol=0, atol=1e-12)
    for k in range(3):
        alone = GaussianMixture(torch.ones(1), mixture.means[k : k + 1], mixture.stds[k : k + 1])
        joint = mixture.weights[k].log() + alone.log_prob(linear)(x, t)
        assert_close(
            posterior[:, k], (joint - mixture.log_prob(linear)(x, t)).exp(), rtol=0, atol=1e-12
        )


def test_samples_have_the_mixtures_moments(mixture):
    n = 200_000
    x = mixture.sample(n, torch.Generator().manual_seed(0))
    assert x.dtype == F64
    mean = (mixture.weights[:, None] * mixture.means).sum(0)
    second = (mixture.weights[:, None] * (mixture.means**2 + mixture.stds[:, None] ** 2)).sum(0)
    std = (second - mean**2).sqrt()
    assert ((x.mean(0) - mean).abs() < 4 * std / math.sqrt(n)).all()
    assert (((x**2).mean(0) - second).abs() < 4 * (x**2).std(0) / math.sqrt(n)).all()
    nearest = torch.cdist(x, mixture.means).argmin(1)
    share = (nearest == 0).double().mean().item()
    assert share == pytest.approx(0.5, abs=0.01)
    generator = torch.Generator().manual_seed(1)
    component = torch.multinomial(mixture.weights, 5, replacement=True, generator=generator)
    noise = torch.randn(5, 2, generator=generator, dtype=F64)
    by_hand = mixture.means[component] + mixture.stds[component][:, None] * noise
    assert_close(mixture.sample(5, torch.Generator().manual_seed(1)), by_hand, rtol=0, atol=1e-15)


def test_images_are_flattened_and_shaped_back(linear):
    means = normal(2, 3 * 4 * 4)
    data = GaussianMixture(torch.tensor([0.5, 0.5]), means, torch.tensor([0.1, 0.2]))
    x = normal(5, 3, 4, 4).float()
    eps = data.eps_model(linear)(x, torch.full((5,), 300))
    assert eps.shape == x.shape
    assert eps.dtype == torch.float32
    assert_close(eps.flatten(1), data.eps_model(linear)(x.flatten(1), 300), rtol=0, atol=1e-6)
    assert data.log_prob(linear)(x, 300).shape == (5,)
    assert data.log_prob(linear)(x, 300).dtype == torch.float32


def test_points_have_no_density_at_0(linear):
    point = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(ValueError, match="at t = 0 a component with std 0"):
        point.log_prob(linear)(normal(2, 2), 0)
    assert torch.isfinite(point.log_prob(linear)(normal(2, 2), 1)).all()


@pytest.mark.parametrize(
    ("weights", "means", "stds", "message"),
    [
        ([0.5, 0.5], [[0.0]], [1.0, 1.0], r"\(2,\), means \(1, 1\)"),
        ([1.0], [0.0], [1.0], r"\(K, D\)"),
        ([1.0], [[0.0]], [1.0, 2.0], r"stds \(2,\)"),
        (1.0, [[0.0]], [1.0], r"weights \(\)"),
        ([0.5, 0.6], [[0.0], [1.0]], [1.0, 1.0], "sum to 1"),
        ([0.0, 1.0], [[0.0], [1.0]], [1.0, 1.0], "positive"),
        ([1.0], [[0.0]], [-1.0], "stds"),
        ([1.0], [[math.nan]], [1.0], "means holds a value that is not finite"),
    ],
)
def test_bad_mixtures_are_refused(weights, means, stds, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(torch.tensor(weights), torch.tensor(means), torch.tensor(stds))


def test_bad_uses_are_refused(linear, mixture):
    with pytest.raises(ValueError, match=r"component = 3 must be in 0\.\.2"):
        mixture.eps_model(linear, 3)
    with pytest.raises(ValueError, match="component = -1"):
        mixture.log_posterior(linear, -1)
    with pytest.raises(ValueError, match="D = 2"):
        mixture.score(linear)(normal(2, 3), 5)
    with pytest.raises(ValueError, match="t = 1001"):
        mixture.score(linear)(normal(2, 2), 1001)
    for t in (torch.tensor([1, 2, 3]), torch.tensor([[1], [2]])):
        for ask in (
            mixture.score(linear),
            mixture.log_prob(linear),
            mixture.log_posterior(linear, 0),
        ):
            with pytest.raises(ValueError, match=r"t has shape .* fits no batch"):
                ask(normal(1, 2), t)
