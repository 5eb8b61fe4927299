"""The variational bound on -log p(x_0), term by term, and its decoder.

Every function raises ValueError for an unknown variance or decoder or a time outside its
domain, TypeError as NoiseSchedule.at.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from diffusion_core._validate import Generators, check_choice, check_whole
from diffusion_core.ddpm import Variance, ddpm_step, q_posterior, q_sample, step_rates
from diffusion_core.prediction import EpsModel
from diffusion_core.sampling import draw
from diffusion_core.schedules import NoiseSchedule, expand

Decoder = Literal["gaussian", "discretized"]


def vlb_terms(
    eps_model: EpsModel,
    x_0: Tensor,
    schedule: NoiseSchedule,
    *,
    variance: Variance = "posterior",
    decoder: Decoder = "discretized",
    generator: Generators = None,
) -> Tensor:
    """The terms of the variational bound on -log p(x_0), one draw of noise for each;
    their sum is the bound.

    Equation: DDPM eq. 5; column 0 is L_0, column t - 1 is L_{t-1} for 1 < t <= T,
        column T is L_T.
    Shapes: x_0 (B, *); result (B, T+1).
    Returns: nats, float64; summed over elements. bits_per_dim() turns a sum into bits
        per dimension.
    Raises: ValueError for an unknown variance or decoder; TypeError as
        NoiseSchedule.at.
    """

    def term(t: int) -> Tensor:
        eps = draw(x_0, generator)
        return vlb_term(eps_model, x_0, t, eps, schedule, variance=variance, decoder=decoder)

    terms = [term(t) for t in range(1, schedule.T + 1)]
    return torch.stack([*terms, prior_kl(x_0, schedule)], 1)


@torch.no_grad()
def vlb_term(
    eps_model: EpsModel,
    x_0: Tensor,
    t: int,
    eps: Tensor,
    schedule: NoiseSchedule,
    *,
    variance: Variance = "posterior",
    decoder: Decoder = "discretized",
) -> Tensor:
    """One term of the bound: L_{t-1} for t > 1, L_0 for t = 1. L_0's Gaussian takes
    beta-tilde_2 if the variance is "posterior".

    Equation: DDPM eq. 5; for t > 1 a divergence of two Gaussians:

            KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t))
    Shapes: x_0, eps (B, *); t a whole number, 1 <= t <= T.
    Returns: nats, (B,) float64; summed over elements.
    Raises: ValueError for an unknown variance or decoder, or a t outside its domain;
        TypeError as NoiseSchedule.at.
    """
    check_choice("decoder", decoder, Decoder)
    check_whole("t", t, 1)
    x_t = q_sample(x_0, t, eps, schedule)
    predicted = eps_model(x_t, torch.full((x_0.shape[0],), t))
    model_mean = ddpm_step(predicted, x_t, t, t - 1, torch.zeros_like(x_t), schedule).double()
    sigma = expand(_sigma(t, schedule, variance), model_mean)
    if t == 1:
        return decoder_nll(x_0.double(), model_mean, sigma, decoder)
    mean, var = q_posterior(x_0.double(), x_t.double(), t, t - 1, schedule)
    return gaussian_kl(mean, var, model_mean, sigma**2).flatten(1).sum(1)


def _sigma(t: int, schedule: NoiseSchedule, variance: Variance) -> Tensor:
    """Standard deviation of p_theta(x_{t-1} | x_t), float64: root of beta_t or
    beta-tilde_t, DDPM sec. 3.2; beta-tilde_1 is 0, and beta-tilde_2 stands for it."""
    check_choice("variance", variance, Variance)
    t = max(t, 2) if variance == "posterior" else t
    _, beta, beta_tilde = step_rates(*schedule.alpha_bars(t, t - 1))
    return (beta if variance == "beta" else beta_tilde).sqrt()


def prior_kl(x_0: Tensor, schedule: NoiseSchedule) -> Tensor:
    """L_T, what the forward process leaves of x_0 at time T.

    Equation: DDPM eq. 5, KL(q(x_T | x_0) || N(0, I)).
    Shapes: x_0 (B, *).
    Returns: nats, (B,) float64; summed over elements.
    """
    signal, noise = schedule.at(schedule.T, x_0.double())
    zero, one = torch.zeros_like(signal), torch.ones_like(noise)
    return gaussian_kl(signal * x_0.double(), noise**2, zero, one).flatten(1).sum(1)


def gaussian_kl(mean_q: Tensor, var_q: Tensor, mean_p: Tensor, var_p: Tensor) -> Tensor:
    """KL divergence between two normal distributions, element by element.

    Equation: KL(N(mean_q, var_q) || N(mean_p, var_p)), with r = var_q / var_p:

            (r - 1 - log r + (mean_q - mean_p)^2 / var_p) / 2
    Shapes: all broadcast together.
    Returns: nats.
    """
    ratio = var_q / var_p
    return 0.5 * (ratio - 1 - ratio.log() + (mean_q - mean_p) ** 2 / var_p)


def decoder_nll(
    x_0: Tensor, mean: Tensor, sigma: Tensor, decoder: Decoder = "discretized"
) -> Tensor:
    """L_0 = -log p_theta(x_0 | x_1), as a density or as the probability of a pixel's
    bin.

    Equation: DDPM eq. 13 ("discretized"): the normal distribution's mass in the bin of
        width 2/255 around x_0, the first and last bins open-ended. "gaussian": the
        normal density itself, for data that are real numbers.
    Shapes: x_0, mean (B, *); sigma broadcasts.
    Returns: nats, (B,); summed over elements.
    Raises: ValueError for an unknown decoder, or if "discretized" is asked of data
        outside [-1, 1].
    """
    check_choice("decoder", decoder, Decoder)
    if decoder == "gaussian":
        nll = 0.5 * (((x_0 - mean) / sigma) ** 2 + (2 * math.pi * sigma**2).log())
        return nll.flatten(1).sum(1)
    if x_0.abs().max() > 1:
        raise ValueError(
            f"max |x_0| = {x_0.abs().max():g}: the discretized decoder is for images in [-1, 1]; "
            "use decoder='gaussian'"
        )
    upper = torch.where(x_0 > 0.999, torch.inf, (x_0 + 1 / 255 - mean) / sigma)
    lower = torch.where(x_0 < -0.999, -torch.inf, (x_0 - 1 / 255 - mean) / sigma)
    return -_log_normal_mass(lower, upper).flatten(1).sum(1)


def _log_normal_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)), stable in both tails: reflected so that the
    interval lies left of 0."""
    flip = lower > 0
    lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return log_upper + torch.log1p(-torch.exp(log_lower - log_upper))


def bits_per_dim(nats: Tensor, x_0: Tensor) -> Tensor:
    """Nats per image into bits per dimension.

    Equation: nats / (D ln 2), D the number of elements of one image.
    Shapes: nats (B, ...); x_0 (B, *).
    Returns: the shape of nats.
    """
    return nats / (math.prod(x_0.shape[1:]) * math.log(2))


def estimate_bound(
    eps_model: EpsModel,
    x_0: Tensor,
    schedule: NoiseSchedule,
    strata: int = 60,
    generator: torch.Generator | None = None,
) -> Tensor:
    """An unbiased estimate of the variational bound on -log p(x_0) from few of its
    terms: the times 2..T are cut into strata, narrow where t is small; each gives one t
    at random, counted as often as the stratum has times.

    Equation: DDPM eq. 5, the sum over t estimated; L_0 and L_T are exact.
    Shapes: x_0 (B, *) in [-1, 1]; result (B,).
    Returns: nats, float64; summed over elements.
    Raises: ValueError unless 1 <= strata <= T - 1.
    """
    if not 1 <= strata <= schedule.T - 1:
        raise ValueError(f"strata = {strata} must be in 1..T - 1 = {schedule.T - 1}")
    total = prior_kl(x_0, schedule) + vlb_term(eps_model, x_0, 1, draw(x_0, generator), schedule)
    edges = torch.linspace(0, 1, strata + 1, dtype=torch.float64)
    edges = (2 * ((schedule.T + 1) / 2) ** edges).round().long().unique()
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        t = int(torch.randint(low, high, (), generator=generator))
        term = vlb_term(eps_model, x_0, t, draw(x_0, generator), schedule)
        total = total + (high - low) * term
    return total
