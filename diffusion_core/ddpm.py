"""Denoising diffusion probabilistic models (Ho et al. 2020): the forward jump, the
posterior, one reverse step, the sampler and the loss.

Times are given as () or (B,). Results keep the dtype and device of the state. Every
function raises ValueError if shapes do not fit or a time is outside its domain, TypeError
as NoiseSchedule.at; what it raises besides stands with it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from diffusion_core._validate import (
    Generators,
    Time,
    check_choice,
    check_generators,
    check_same_shape,
)
from diffusion_core.prediction import EpsModel, check_noisy
from diffusion_core.sampling import Step, draw, walk
from diffusion_core.schedules import NoiseSchedule, expand

Variance = Literal["posterior", "beta"]


def q_sample(x_0: Tensor, t: Time, eps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Noise x_0 to time t in one jump.

    Equation: DDPM eq. 4, with eps ~ N(0, I):

            x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps
    Shapes: x_0, eps (B, *); t () or (B,), 0 <= t <= T.
    Returns: x_t (B, *).
    """
    check_same_shape("x_0", x_0, "eps", eps)
    signal_rate, noise_rate = schedule.at(t, x_0)
    return (signal_rate * x_0 + noise_rate * eps).to(x_0)


def step_rates(alpha_bar_t: Tensor, alpha_bar_s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(alpha, beta, beta-tilde) of the step t -> s, float64.

    Equation: DDPM sec. 2 and eq. 7 with s = t - 1; for any s < t,
        alpha = alpha_bar_t / alpha_bar_s (the share of the signal's variance that the
        chain keeps from s to t), beta = 1 - alpha, beta-tilde = (1 - alpha_bar_s) / (1
        - alpha_bar_t) beta.
    """
    alpha = alpha_bar_t / alpha_bar_s
    beta = 1 - alpha
    return alpha, beta, (1 - alpha_bar_s) / (1 - alpha_bar_t) * beta


def q_posterior(
    x_0: Tensor, x_t: Tensor, t: Time, s: Time, schedule: NoiseSchedule
) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_s | x_t, x_0), for any earlier time s.

    Equation: DDPM eq. 6-7 with s = t - 1; for any s < t the same, with
        alpha = alpha_bar_t / alpha_bar_s and beta = 1 - alpha:

            mean = sqrt(alpha_bar_s) beta / (1 - alpha_bar_t) x_0
                 + sqrt(alpha) (1 - alpha_bar_s) / (1 - alpha_bar_t) x_t
            variance = (1 - alpha_bar_s) / (1 - alpha_bar_t) beta
    Shapes: x_0, x_t (B, *); t, s () or (B,), 0 <= s < t <= T.
    Returns: mean (B, *); variance () or (B, 1, ..., 1).
    """
    check_same_shape("x_0", x_0, "x_t", x_t)
    alpha_bar_t, alpha_bar_s = schedule.alpha_bars(t, s)
    alpha, beta, variance = step_rates(alpha_bar_t, alpha_bar_s)
    weight_0 = alpha_bar_s.sqrt() * beta / (1 - alpha_bar_t)
    weight_t = alpha.sqrt() * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    mean = expand(weight_0, x_t) * x_0 + expand(weight_t, x_t) * x_t
    return mean.to(x_t), expand(variance, x_t)


def ddpm_step(
    eps: Tensor,
    x_t: Tensor,
    t: Time,
    s: Time,
    z: Tensor,
    schedule: NoiseSchedule,
    variance: Variance = "posterior",
) -> Tensor:
    """One reverse step from t to any earlier s; z is not added when s = 0.

    Equation: DDPM alg. 2, line 4 (its mean: eq. 11), with
        alpha = alpha_bar_t / alpha_bar_s and beta = 1 - alpha for any s < t:

            x_s = (x_t - beta / sqrt(1 - alpha_bar_t) eps) / sqrt(alpha) + sigma z
            sigma^2 = beta ("beta"), or
            sigma^2 = (1 - alpha_bar_s) / (1 - alpha_bar_t) beta ("posterior")
    Shapes: eps, x_t, z (B, *); t, s () or (B,), 0 <= s < t <= T.
    Returns: x_s (B, *).
    Raises: ValueError if the variance is unknown.
    """
    check_same_shape("eps", eps, "x_t", x_t)
    check_same_shape("z", z, "x_t", x_t)
    check_choice("variance", variance, Variance)
    alpha_bar_t, alpha_bar_s = schedule.alpha_bars(t, s)
    alpha, beta, beta_tilde = step_rates(alpha_bar_t, alpha_bar_s)
    eps_weight = beta / (1 - alpha_bar_t).sqrt()
    mean = (x_t - expand(eps_weight, x_t) * eps) / expand(alpha.sqrt(), x_t)
    sigma = beta.sqrt() * (alpha_bar_s < 1) if variance == "beta" else beta_tilde.sqrt()
    return (mean + expand(sigma, x_t) * z).to(x_t)


def ddpm_sample(
    eps_model: EpsModel,
    x_T: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    *,
    variance: Variance = "posterior",
    generator: Generators = None,
) -> Iterator[Step]:
    """Ancestral sampling along a grid of times: the full chain or a strided one. The
    model sees the original t.

    Equation: DDPM alg. 2, each step as in ddpm_step.
    Shapes, Returns, Raises: as walk(); ValueError if the variance is unknown.
    """
    check_choice("variance", variance, Variance)
    step = functools.partial(ddpm_step, schedule=schedule, variance=variance)
    return walk(step, eps_model, x_T, times, schedule, generator=generator)


def eps_loss(
    eps_model: EpsModel, x_0: Tensor, t: Time, eps: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """Squared error of the predicted noise, for each image.

    Equation: DDPM eq. 14 inside the expectation, the mean over elements in place of the
        squared norm.
    Shapes: x_0, eps (B, *); t (B,), 0 < t <= T.
    Returns: (B,).
    """
    check_noisy(t, schedule)
    x_t = q_sample(x_0, t, eps, schedule)
    predicted = eps_model(x_t, torch.as_tensor(t).expand(x_0.shape[0]))
    check_same_shape("the model's eps", predicted, "x_t", x_t)
    return (predicted - eps).square().flatten(1).mean(1)


def simple_loss(
    eps_model: EpsModel, x_0: Tensor, schedule: NoiseSchedule, *, generator: Generators = None
) -> Tensor:
    """The training loss: t uniform on 1..T, eps standard normal, squared error averaged
    over images and elements.

    Equation: DDPM eq. 14, L_simple = E_{t, x_0, eps} ||eps - eps_theta(x_t, t)||^2, per
        element.
    Shapes: x_0 (B, *).
    Returns: a scalar.
    Raises: ValueError if the number of generators is not 1 or B.
    """
    check_generators(generator, x_0.shape[0])
    if generator is None or isinstance(generator, torch.Generator):
        t = _uniform_times(x_0.shape[0], schedule, generator)
    else:
        t = torch.cat([_uniform_times(1, schedule, g) for g in generator])
    return eps_loss(eps_model, x_0, t, draw(x_0, generator), schedule).mean()


def _uniform_times(n: int, schedule: NoiseSchedule, generator: torch.Generator | None) -> Tensor:
    """n times, uniform on 1..T, on the CPU."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(1, schedule.T + 1, (n,), generator=generator, device=device).cpu()
