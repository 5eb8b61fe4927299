"""The bound on the likelihood, against the paper's terms written out, and against exact answers."""

import math

import pytest
import torch
from torch.testing import assert_close

from diffusion_core import likelihood
from diffusion_core.exact import GaussianMixture
from diffusion_core.likelihood import (
    bits_per_dim,
    decoder_nll,
    estimate_bound,
    gaussian_kl,
    prior_kl,
    vlb_term,
    vlb_terms,
)
from diffusion_core.schedules import NoiseSchedule, cosine_betas, linear_betas
from tests.conftest import normal, seeded

F64 = torch.float64


def _tiny():
    return NoiseSchedule.from_betas(torch.linspace(0.05, 0.6, 6, dtype=F64))


def test_kl_by_integration():
    mean_q, var_q, mean_p, var_p = (torch.tensor(v, dtype=F64) for v in (0.3, 0.5, -0.2, 1.7))
    x = torch.linspace(-12, 12, 200_001, dtype=F64)
    log = [
        -0.5 * (x - m) ** 2 / v - 0.5 * (2 * math.pi * v).log()
        for m, v in ((mean_q, var_q), (mean_p, var_p))
    ]
    numeric = torch.trapezoid(log[0].exp() * (log[0] - log[1]), x)
    assert gaussian_kl(mean_q, var_q, mean_p, var_p).item() == pytest.approx(
        numeric.item(), abs=1e-9
    )


def test_the_bound_is_tight_for_one_point():
    """For single-point data and its exact model every KL is 0: only L_T and L_0 remain."""
    schedule = _tiny()
    data = GaussianMixture(torch.ones(1), torch.tensor([[0.4, -0.3]]), torch.zeros(1))
    x_0 = data.means.expand(3, 2)
    terms = vlb_terms(
        data.eps_model(schedule), x_0, schedule, decoder="gaussian", generator=seeded(0)
    )
    assert terms.shape == (3, 7)
    assert terms.dtype == F64
    assert_close(terms[:, 1:6], torch.zeros(3, 5, dtype=F64), rtol=0, atol=1e-12)
    a_T = schedule.alpha_bar[-1]
    prior = 0.5 * (a_T * (x_0**2) - a_T - (1 - a_T).log()).sum(1)
    assert_close(terms[:, 6], prior, rtol=0, atol=1e-12)
    assert_close(prior_kl(x_0, schedule), prior, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_terms_are_the_papers_kl(variance):
    """Against DDPM eq. 7, 8 and 11 written out by hand, for a model that is wrong by a constant."""
    schedule = _tiny()
    x_0, eps = normal(2, 3), normal(2, 3, seed=1)
    wrong = eps + 0.3
    for t in range(2, 7):
        beta, a, a_prev = schedule.betas[t - 1], schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
        tilde = (1 - a_prev) / (1 - a) * beta
        sigma2 = tilde if variance == "posterior" else beta
        gap = beta / ((1 - beta).sqrt() * (1 - a).sqrt()) * 0.3
        kl = 0.5 * (tilde / sigma2 - 1 - (tilde / sigma2).log() + gap**2 / sigma2)
        term = vlb_term(lambda x, t: wrong, x_0, t, eps, schedule, variance=variance)
        assert_close(term, (3 * kl).expand(2), rtol=0, atol=1e-11)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_last_term_takes_beta_tilde_2(variance):
    schedule = _tiny()
    x_0, eps = 0.3 * normal(2, 3), normal(2, 3, seed=1)
    a1, a2, b2 = schedule.alpha_bar[1], schedule.alpha_bar[2], schedule.betas[1]
    sigma2 = (1 - a1) / (1 - a2) * b2 if variance == "posterior" else schedule.betas[0]
    wrong = eps + 0.3
    gap = (1 - a1).sqrt() / a1.sqrt() * 0.3
    nll = 3 * 0.5 * (gap**2 / sigma2 + (2 * math.pi * sigma2).log())
    term = vlb_term(
        lambda x, t: wrong, x_0, 1, eps, schedule, variance=variance, decoder="gaussian"
    )
    assert_close(term, nll.expand(2), rtol=0, atol=1e-11)


def test_the_last_term_is_the_decoder_of_the_pixels():
    """L_0 of pixels, black and white among them, with the model's mean and the pixel's open bins."""
    schedule = _tiny()
    x_0 = torch.tensor([[-1.0, 1.0, 51 / 255 * 2 - 1]], dtype=F64)
    eps = normal(1, 3)
    wrong = eps + 0.3
    mean = x_0 - (1 / schedule.alpha_bar[1] - 1).sqrt() * 0.3
    sigma = schedule.betas[0].sqrt()
    edges = ((x_0 - 1 / 255 - mean) / sigma, (x_0 + 1 / 255 - mean) / sigma)
    below, above = (torch.special.ndtr(e) for e in edges)
    mass = above[0, 0] * (1 - below[0, 1]) * (above[0, 2] - below[0, 2])
    term = vlb_term(lambda x, t: wrong, x_0, 1, eps, schedule, variance="beta")
    assert_close(term, -mass.log().reshape(1), rtol=0, atol=1e-9)


def test_the_discretized_decoder_is_a_distribution_over_pixels():
    """DDPM eq. 13: the 256 bins' probabilities sum to 1, for any mean and sigma."""
    pixels = (torch.arange(256, dtype=F64) / 127.5 - 1)[:, None]
    for mean, sigma in ((0.0, 0.3), (0.99, 0.01), (-1.3, 0.05), (0.2, 2.0)):
        m = torch.full_like(pixels, mean)
        nll = decoder_nll(pixels, m, torch.tensor(sigma, dtype=F64))
        assert nll.shape == (256,)
        assert (-nll).exp().sum().item() == pytest.approx(1, abs=1e-9)
        inner = 128
        width = 2 / 255
        density = math.exp(-0.5 * ((pixels[inner].item() - mean) / sigma) ** 2) / (
            sigma * math.sqrt(2 * math.pi)
        )
        if sigma >= 0.3:
            assert (-nll[inner]).exp().item() == pytest.approx(density * width, rel=1e-3)


def test_the_decoder_is_stable_far_from_the_mean():
    x = torch.tensor([[0.5], [-0.5]], dtype=F64)
    for mean in (-0.9, 0.9):
        m = torch.full_like(x, mean)
        nll = decoder_nll(x, m, torch.tensor(0.01, dtype=F64))
        assert torch.isfinite(nll).all()
    near, far = decoder_nll(x, torch.full_like(x, 0.9), torch.tensor(0.01, dtype=F64))
    assert far > near > 0
    mirrored = decoder_nll(-x, torch.full_like(x, -0.9), torch.tensor(0.01, dtype=F64))
    assert_close(mirrored, torch.stack([near, far]), rtol=0, atol=1e-6)


def test_decoder_arguments(linear):
    x = 1.5 * torch.ones(1, 2, dtype=F64)
    with pytest.raises(ValueError, match="decoder = 'other' is unknown"):
        decoder_nll(x, x, x, "other")
    for outside in (x, -x):
        with pytest.raises(ValueError, match=r"max \|x_0\| = 1.5"):
            decoder_nll(outside, x, x)
    with pytest.raises(ValueError, match="variance = 'other' is unknown"):
        vlb_term(lambda a, t: a, x, 5, x, linear, variance="other")


@pytest.mark.parametrize("t", [1, 5])
def test_an_unknown_decoder_is_refused_at_every_t(linear, t):
    x = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="decoder = 'nonsense' is unknown"):
        vlb_term(lambda x, t: x, x, t, x, linear, decoder="nonsense")


def test_bits_per_dim():
    nats = torch.tensor([[12 * math.log(2)], [0.0]])
    assert_close(
        bits_per_dim(nats, torch.zeros(2, 3, 2, 2)), torch.tensor([[1.0], [0.0]]), rtol=0, atol=1e-6
    )


def test_the_bound_bounds(mixture):
    """On a mixture with its exact model, the bound lies above -log p and closes in as the chain
    gets finer."""
    x_0 = mixture.sample(1000, seeded(0))
    gaps = []
    for T in (50, 200):
        schedule = NoiseSchedule.from_betas(cosine_betas(T))
        terms = vlb_terms(
            mixture.eps_model(schedule),
            x_0,
            schedule,
            variance="beta",
            decoder="gaussian",
            generator=seeded(1),
        )
        gaps.append((terms.sum(1) + mixture.log_prob(schedule)(x_0, 0)).mean().item())
    assert 0.3 < gaps[0] < 0.5
    assert 0.05 < gaps[1] < 0.2


def test_the_bound_from_few_terms_is_the_whole_bound_on_average():
    schedule = NoiseSchedule.from_betas(linear_betas(40, 1e-3, 0.3))
    data = GaussianMixture(torch.ones(1), torch.zeros(1, 3), torch.tensor([0.3]))
    x_0 = data.sample(50, torch.Generator().manual_seed(0)).clamp(-1, 1)
    g = torch.Generator().manual_seed(1)
    model = data.eps_model(schedule)
    whole = torch.stack(
        [vlb_terms(model, x_0, schedule, generator=g).sum(1).mean() for _ in range(10)]
    )
    for strata, repeats in ((4, 60), (39, 10)):
        part = torch.stack(
            [estimate_bound(model, x_0, schedule, strata, g).mean() for _ in range(repeats)]
        )
        error = math.sqrt(part.var() / repeats + whole.var() / 10)
        assert abs(part.mean() - whole.mean()) < 4 * error, strata
        assert error < 0.1 * whole.mean(), strata
    with pytest.raises(ValueError, match=r"strata = 40 must be in 1\.\.T - 1 = 39"):
        estimate_bound(data.eps_model(schedule), x_0, schedule, 40)


@pytest.mark.parametrize("strata", [1, 4, 10])
def test_the_strata_cover_the_chain_without_gap_or_overlap(monkeypatch, strata):
    """If every term is 1, the estimate is their number and L_T, whatever times are drawn."""
    asked = []

    def one(eps_model, x_0, t, eps, schedule):
        asked.append(t)
        return torch.ones(len(x_0), dtype=F64)

    monkeypatch.setattr(likelihood, "vlb_term", one)
    schedule, x_0 = NoiseSchedule.from_betas(linear_betas(1000)), normal(2, 3)
    for seed in range(20):
        asked.clear()
        total = estimate_bound(None, x_0, schedule, strata, seeded(seed))
        assert_close(total, 1000 + prior_kl(x_0, schedule), rtol=0, atol=1e-9)
        assert asked == sorted(set(asked))
        assert asked[0] == 1
        assert asked[1] >= 2
        assert asked[-1] <= 1000
        assert len(asked) == strata + 1


def test_each_stratum_draws_any_of_its_times(monkeypatch):
    """Few strata, many draws: every time of 2..T is met."""
    asked = set()

    def note(eps_model, x_0, t, eps, schedule):
        asked.add(t)
        return torch.ones(len(x_0), dtype=F64)

    monkeypatch.setattr(likelihood, "vlb_term", note)
    schedule, g = NoiseSchedule.from_betas(linear_betas(8, 1e-3, 0.3)), seeded(0)
    for _ in range(200):
        estimate_bound(None, normal(1, 3), schedule, 2, g)
    assert asked == set(range(1, 9))


def test_a_number_of_strata_or_a_time_that_is_none_is_refused():
    schedule, x_0 = _tiny(), normal(2, 3)
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 3), torch.ones(1)).eps_model(schedule)
    for strata in (0, schedule.T):
        with pytest.raises(ValueError, match=rf"strata = {strata} must be in 1\.\.T - 1 = 5"):
            estimate_bound(model, x_0, schedule, strata)
    with pytest.raises(ValueError, match="t = 0 must be at least 1"):
        vlb_term(model, x_0, 0, x_0, schedule)
