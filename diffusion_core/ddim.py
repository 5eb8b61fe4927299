"""Denoising diffusion implicit models (J. Song et al. 2021): one family of samplers, from
DDPM (eta = 1) to a deterministic map (eta = 0) that can be run backwards.

The paper's alpha is our alpha_bar, and its tau_i and tau_{i-1} are our t and s. eta is a
number of at least 0, or "hat": DDPM's larger variance. Times are given as () or (B,).
Results keep the dtype and device of the state; their weights are computed in float64 and
cast once. Every function raises ValueError if shapes do not fit, a time is outside its
domain, or eta is negative, not finite, or an unknown word; TypeError as NoiseSchedule.at.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from diffusion_core._validate import (
    Generators,
    Time,
    check_choice,
    check_grid,
    check_same_shape,
)
from diffusion_core.ddpm import step_rates
from diffusion_core.prediction import EpsModel, predict_x0
from diffusion_core.sampling import Step, walk
from diffusion_core.schedules import NoiseSchedule, expand

Hat = Literal["hat"]
Eta = float | Hat


def ddim_sigma(t: Time, s: Time, schedule: NoiseSchedule, eta: float) -> Tensor:
    """The standard deviation of the noise that a step from t to s adds.

    Equation: DDIM eq. 16; at eta = 1 its square is DDPM's beta-tilde:

            sigma = eta sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t))
                        sqrt(1 - alpha_bar_t / alpha_bar_s)
    Shapes: t, s () or (B,), 0 <= s < t <= T; result the same.
    Returns: float64 on the CPU; 0 at s = 0.
    """
    _check_number(eta)
    _, _, beta_tilde = step_rates(*schedule.alpha_bars(t, s))
    return eta * beta_tilde.sqrt()


def ddim_sigma_hat(t: Time, s: Time, schedule: NoiseSchedule) -> Tensor:
    """The larger standard deviation with which DDPM's authors sampled CIFAR-10.

    Equation: DDIM sec. 5, sigma-hat = sqrt(1 - alpha_bar_t / alpha_bar_s).
    Shapes: t, s () or (B,), 0 <= s < t <= T; result the same.
    Returns: float64 on the CPU; above 0 also at s = 0, where ddim_step leaves it out.
    """
    _, beta, _ = step_rates(*schedule.alpha_bars(t, s))
    return beta.sqrt()


def ddim_step(
    eps: Tensor,
    x_t: Tensor,
    t: Time,
    s: Time,
    z: Tensor | None,
    schedule: NoiseSchedule,
    eta: Eta = 0.0,
) -> Tensor:
    """One step from t to any earlier s. z may be None where no noise is added: at
    eta = 0, and at s = 0.

    Equation: DDIM eq. 12, with sigma = ddim_sigma(t, s, schedule, eta):

            x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)
            x_s = sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s - sigma^2) eps + sigma z

        eta = "hat" (sec. 5 and app. D.3): sigma at eta = 1 under the root, sigma-hat
        before z: ddpm_step with the variance "beta". It adds no z at s = 0.
    Shapes: eps, x_t, z (B, *); t, s () or (B,), 0 <= s < t <= T.
    Returns: x_s (B, *).
    Raises: ValueError if eta is so large that sigma^2 > 1 - alpha_bar_s (the message
        names the largest one), or if z is missing.
    """
    check_same_shape("eps", eps, "x_t", x_t)
    alpha_bar_t, alpha_bar_s = schedule.alpha_bars(t, s)
    direction, sigma = _weights(alpha_bar_t, alpha_bar_s, eta)
    noise_rate, signal_rate = (1 - alpha_bar_t).sqrt(), alpha_bar_t.sqrt()
    x_0 = (x_t - expand(noise_rate, x_t) * eps) / expand(signal_rate, x_t)
    x_s = expand(alpha_bar_s.sqrt(), x_t) * x_0 + expand(direction, x_t) * eps
    if z is None:
        if bool((sigma > 0).any()):
            raise ValueError(f"z is None, but a step with eta = {eta!r} adds noise; give a draw")
        return x_s.to(x_t)
    check_same_shape("z", z, "x_t", x_t)
    return (x_s + expand(sigma, x_t) * z).to(x_t)


def ddim_sample(
    eps_model: EpsModel,
    x_T: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    *,
    eta: Eta = 0.0,
    generator: Generators = None,
) -> Iterator[Step]:
    """Sample along a grid of times. At eta = 0 nothing is drawn: the image is a function
    of x_T, and the generator stays as it was.

    Equation: DDIM eq. 12, each step as in ddim_step.
    Shapes, Returns, Raises: as walk(); at the call also ValueError if eta is too large
        for a step of the grid.
    """
    times = check_grid(times, schedule.T)
    _weights(*schedule.alpha_bars(times[:-1], times[1:]), eta)
    step = functools.partial(ddim_step, schedule=schedule, eta=eta)
    return walk(step, eps_model, x_T, times, schedule, generator=generator, noisy=eta != 0)


def ddim_invert_step(eps: Tensor, x_s: Tensor, s: Time, t: Time, schedule: NoiseSchedule) -> Tensor:
    """One deterministic step the other way, from s to a later t.

    Equation: DDIM eq. 13 with s and t exchanged: Euler's step of the ODE (eq. 14), in
        x / sqrt(alpha_bar) and sigma = sqrt((1 - alpha_bar) / alpha_bar):

            x_t / sqrt(alpha_bar_t) = x_s / sqrt(alpha_bar_s) + (sigma_t - sigma_s) eps
    Shapes: eps, x_s (B, *); s, t () or (B,), 0 <= s < t <= T.
    Returns: x_t (B, *).
    """
    check_same_shape("eps", eps, "x_s", x_s)
    alpha_bar_t, alpha_bar_s = schedule.alpha_bars(t, s)
    sigma_t = ((1 - alpha_bar_t) / alpha_bar_t).sqrt()
    sigma_s = ((1 - alpha_bar_s) / alpha_bar_s).sqrt()
    scaled = x_s / expand(alpha_bar_s.sqrt(), x_s) + expand(sigma_t - sigma_s, x_s) * eps
    return (expand(alpha_bar_t.sqrt(), x_s) * scaled).to(x_s)


def ddim_invert(
    eps_model: EpsModel, x_0: Tensor, times: Tensor, schedule: NoiseSchedule
) -> Iterator[Step]:
    """Encode data into noise: the grid of ddim_sample (given as there, decreasing) walked
    upwards. The model is asked at the time that is left, but never below 1: it has
    learnt nothing of t = 0.

    Equation: DDIM eq. 14 run forward, each step as in ddim_invert_step.
    Shapes: x_0 (B, *); times (S+1,), strictly decreasing to 0.
    Returns: an iterator of S Steps; the last one holds x at times[0], the encoding.
    Raises: at the call: TypeError or ValueError for a bad grid.
    """
    return _invert(eps_model, x_0, check_grid(times, schedule.T), schedule)


@torch.no_grad()
def _invert(
    eps_model: EpsModel, x: Tensor, times: Tensor, schedule: NoiseSchedule
) -> Iterator[Step]:
    for s, t in itertools.pairwise(times.flip(0)):
        eps = eps_model(x, s.clamp(min=1).expand(x.shape[0]))
        x_0 = predict_x0(eps, x, s, schedule)
        x = ddim_invert_step(eps, x, s, t, schedule)
        yield Step(t, x, x_0)


def _weights(alpha_bar_t: Tensor, alpha_bar_s: Tensor, eta: Eta) -> tuple[Tensor, Tensor]:
    """The weights of eps and of z in eq. 12, float64. The radicand is never clamped: it
    is negative only if eta is too large."""
    _, beta, beta_tilde = step_rates(alpha_bar_t, alpha_bar_s)
    if isinstance(eta, str):
        check_choice("eta", eta, Hat)
        return (1 - alpha_bar_s - beta_tilde).sqrt(), beta.sqrt() * (alpha_bar_s < 1)
    _check_number(eta)
    radicand = 1 - alpha_bar_s - eta**2 * beta_tilde
    if bool((radicand < 0).any()):
        bounds = ((1 - alpha_bar_t) / beta).sqrt()
        largest = torch.where(alpha_bar_s < 1, bounds, math.inf).min().item()
        raise ValueError(
            f"eta = {eta:g} is too large: sigma^2 would exceed 1 - alpha_bar_s, all of the "
            f"noise at s; here eta may be at most {math.floor(largest * 1e4) / 1e4}"
        )
    return radicand.sqrt(), eta * beta_tilde.sqrt()


def _check_number(eta: float) -> None:
    """Raise ValueError unless eta is finite and at least 0."""
    if not 0 <= eta < math.inf:
        raise ValueError(
            f"eta = {eta} must be a finite number of at least 0: 0 is deterministic, 1 is DDPM"
        )
