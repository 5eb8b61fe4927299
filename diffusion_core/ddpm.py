"""Denoising diffusion probabilistic models: the forward jump, the posterior, one
reverse step, the sampler and the loss.

Everything is in terms of an EpsModel, a function (x_t (B, *), t (B,)) -> eps (B, *).
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from diffusion_core._validate import (
    Generators,
    Time,
    as_time,
    check_before,
    check_generators,
    check_grid,
    check_same_shape,
)
from diffusion_core.schedules import NoiseSchedule, expand

EpsModel = Callable[[Tensor, Tensor], Tensor]
Variance = Literal["posterior", "beta"]
Decoder = Literal["gaussian", "discretized"]


class Step(NamedTuple):
    """What a sampler yields after each step; the last one holds the sample, at t = 0.

    Shapes: t (), x and x_0 (B, *).
    """

    t: Tensor  # the time reached
    x: Tensor  # the state there
    x_0: Tensor  # the data predicted from the state before the step


def q_sample(x_0: Tensor, t: Time, eps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Noise x_0 to time t in one jump.

    Equation: DDPM eq. 4, with eps ~ N(0, I):

            x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps
    Shapes: x_0, eps (B, *); t () or (B,), 0 <= t <= T.
    Returns: x_t (B, *), dtype and device of x_0.
    Raises: ValueError if shapes do not fit or t is outside its domain; TypeError as
        NoiseSchedule.at.
    """
    check_same_shape("x_0", x_0, "eps", eps)
    signal, noise = schedule.at(t, x_0)
    return (signal * x_0 + noise * eps).to(x_0)


def _step_rates(alpha_bar_t: Tensor, alpha_bar_s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(alpha, beta, beta-tilde) of the step t -> s, float64.

    Equation: DDPM sec. 2 and eq. 7 with s = t - 1; for any s < t,
        alpha = alpha_bar_t / alpha_bar_s (the share of the signal's variance that the
        chain keeps from s to t), beta = 1 - alpha, beta-tilde = (1 - alpha_bar_s) / (1
        - alpha_bar_t) beta.
    """
    alpha = alpha_bar_t / alpha_bar_s
    beta = 1 - alpha
    return alpha, beta, (1 - alpha_bar_s) / (1 - alpha_bar_t) * beta


def _step_times(t: Time, s: Time, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    t, s = as_time(t, 0, schedule.T, "t"), as_time(s, 0, schedule.T, "s")
    check_before(s, t)
    return t, s


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
    Returns: mean (B, *); variance () or (B, 1, ..., 1); dtype and device of x_t.
    Raises: ValueError if shapes do not fit, s >= t, or a time is outside its domain;
        TypeError as NoiseSchedule.at.
    """
    check_same_shape("x_0", x_0, "x_t", x_t)
    t, s = _step_times(t, s, schedule)
    alpha_bar_t, alpha_bar_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(s)
    alpha, beta, variance = _step_rates(alpha_bar_t, alpha_bar_s)
    weight_0 = alpha_bar_s.sqrt() * beta / (1 - alpha_bar_t)
    weight_t = alpha.sqrt() * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    mean = expand(weight_0, x_t) * x_0 + expand(weight_t, x_t) * x_t
    return mean.to(x_t), expand(variance, x_t)


def predict_x0(eps: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """The data that x_t would come from if its noise were eps.

    Equation: DDPM eq. 15, x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t).
    Shapes: eps, x_t (B, *); t () or (B,), 0 <= t <= T.
    Returns: (B, *), dtype and device of x_t.
    Raises: ValueError if shapes do not fit or t is outside its domain; TypeError as
        NoiseSchedule.at.
    """
    check_same_shape("eps", eps, "x_t", x_t)
    signal, noise = schedule.at(t, x_t)
    return ((x_t - noise * eps) / signal).to(x_t)


def predict_eps(x_0: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """The noise that leads from x_0 to x_t: predict_x0 solved for eps.

    Equation: DDPM eq. 4, eps = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t).
    Shapes: x_0, x_t (B, *); t () or (B,), 0 < t <= T.
    Returns: (B, *), dtype and device of x_t.
    Raises: ValueError if shapes do not fit or t is outside its domain (at t = 0 there
        is no noise to find); TypeError as NoiseSchedule.at.
    """
    check_same_shape("x_0", x_0, "x_t", x_t)
    _positive(t, schedule)
    signal, noise = schedule.at(t, x_t)
    return ((x_t - signal * x_0) / noise).to(x_t)


def predict_v(x_0: Tensor, eps: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """The velocity v of the circle on which (x_0, eps) rotates into x_t.

    Equation: Salimans & Ho 2022 sec. 4

            v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0
    Shapes: x_0, eps (B, *); t () or (B,), 0 <= t <= T.
    Returns: (B, *), dtype and device of x_0.
    Raises: ValueError if shapes do not fit or t is outside its domain; TypeError as
        NoiseSchedule.at.
    """
    check_same_shape("x_0", x_0, "eps", eps)
    signal, noise = schedule.at(t, x_0)
    return (signal * eps - noise * x_0).to(x_0)


def eps_from_v(v: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """The noise, from a velocity and the state: the inverse rotation.

    Equation: Salimans & Ho 2022 sec. 4

            eps = sqrt(alpha_bar_t) v + sqrt(1 - alpha_bar_t) x_t
    Shapes: v, x_t (B, *); t () or (B,), 0 <= t <= T.
    Returns: (B, *), dtype and device of x_t.
    Raises: ValueError if shapes do not fit or t is outside its domain; TypeError as
        NoiseSchedule.at.
    """
    check_same_shape("v", v, "x_t", x_t)
    signal, noise = schedule.at(t, x_t)
    return (signal * v + noise * x_t).to(x_t)


def _positive(t: Time, schedule: NoiseSchedule) -> None:
    if not bool((as_time(t, 0, schedule.T) > 0).all()):
        raise ValueError("t = 0 is outside its domain 0 < t <= T: the data holds no noise")


def ddpm_step(
    eps: Tensor,
    x_t: Tensor,
    t: Time,
    s: Time,
    noise: Tensor,
    schedule: NoiseSchedule,
    variance: Variance = "posterior",
) -> Tensor:
    """One reverse step from t to any earlier s; no noise is added when s = 0.

    Equation: DDPM alg. 2, line 4 (its mean: eq. 11), with
        alpha = alpha_bar_t / alpha_bar_s and beta = 1 - alpha for any s < t:

            x_s = (x_t - beta / sqrt(1 - alpha_bar_t) eps) / sqrt(alpha) + sigma noise
            sigma^2 = beta ("beta"), or
            sigma^2 = (1 - alpha_bar_s) / (1 - alpha_bar_t) beta ("posterior")
    Shapes: eps, x_t, noise (B, *); t, s () or (B,), 0 <= s < t <= T.
    Returns: x_s (B, *), dtype and device of x_t.
    Raises: ValueError if shapes do not fit, s >= t, a time is outside its domain, or
        the variance is unknown; TypeError as NoiseSchedule.at.
    """
    check_same_shape("eps", eps, "x_t", x_t)
    check_same_shape("noise", noise, "x_t", x_t)
    t, s = _step_times(t, s, schedule)
    alpha_bar_t, alpha_bar_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(s)
    alpha, beta, _ = _step_rates(alpha_bar_t, alpha_bar_s)
    eps_weight = beta / (1 - alpha_bar_t).sqrt()
    mean = (x_t - expand(eps_weight, x_t) * eps) / expand(alpha.sqrt(), x_t)
    sigma = _sigma(alpha_bar_t, alpha_bar_s, variance) * (s > 0)
    return (mean + expand(sigma, x_t) * noise).to(x_t)


def draw(like: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal noise of like's shape, drawn where the generator lives, then
    moved.

    With one generator per image, an image's noise does not depend on the batch it is
    in.

    Equation: DDPM alg. 2, line 3, z ~ N(0, I).
    Shapes: like (B, *).
    Returns: (B, *) in like's dtype and on like's device; drawn in float32, or in
        float64 if like is.
    Raises: ValueError if the number of generators is not B.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if generator is None or isinstance(generator, torch.Generator):
        device = like.device if generator is None else generator.device
        return torch.randn(like.shape, generator=generator, device=device, dtype=dtype).to(like)
    check_generators(generator, like.shape[0])
    if len(generator) == 0:
        return torch.empty_like(like)
    drawn = [
        torch.randn(like.shape[1:], generator=g, device=g.device, dtype=dtype) for g in generator
    ]
    return torch.stack([noise.to(like) for noise in drawn])


def _sigma(alpha_bar_t: Tensor, alpha_bar_s: Tensor, variance: Variance) -> Tensor:
    """Standard deviation of the step t -> s, float64: root of beta or beta-tilde, DDPM
    sec. 3.2."""
    if variance not in get_args(Variance):
        raise ValueError(f"variance = {variance!r} is unknown; choose one of {get_args(Variance)}")
    _, beta, beta_tilde = _step_rates(alpha_bar_t, alpha_bar_s)
    return (beta if variance == "beta" else beta_tilde).sqrt()


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
    Shapes: x_T (B, *), noise at times[0]; times (S+1,), strictly decreasing to 0, as
        timesteps() makes it.
    Returns: an iterator of S Steps; nothing runs until it is iterated. x_T itself is
        not yielded.
    Raises: at the call: TypeError or ValueError for a bad grid, an unknown variance, or
        a wrong number of generators.
    """
    times = check_grid(times, schedule.T)
    if variance not in get_args(Variance):
        raise ValueError(f"variance = {variance!r} is unknown; choose one of {get_args(Variance)}")
    check_generators(generator, x_T.shape[0])
    return _ddpm_loop(eps_model, x_T, times, schedule, variance, generator)


@torch.no_grad()
def _ddpm_loop(
    eps_model: EpsModel,
    x: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    variance: Variance,
    generator: Generators,
) -> Iterator[Step]:
    for t, s in itertools.pairwise(times):
        eps = eps_model(x, t.expand(x.shape[0]))
        x_0 = predict_x0(eps, x, t, schedule)
        noise = draw(x, generator) if s > 0 else torch.zeros_like(x)
        x = ddpm_step(eps, x, t, s, noise, schedule, variance)
        yield Step(s, x, x_0)


def last(steps: Iterable[Step]) -> Tensor:
    """Run a sampler to its end and keep only the final state.

    Shapes: result (B, *).
    Raises: ValueError if there was no step.
    """
    final = collections.deque(steps, maxlen=1)
    if not final:
        raise ValueError("the sampler made no step: an iterator can be used up only once")
    return final.pop().x


def eps_loss(
    eps_model: EpsModel, x_0: Tensor, t: Time, eps: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """Squared error of the predicted noise, for each image.

    Equation: DDPM eq. 14 inside the expectation, the mean over elements in place of the
        squared norm.
    Shapes: x_0, eps (B, *); t (B,), 0 < t <= T.
    Returns: (B,).
    Raises: ValueError if shapes do not fit or t is outside its domain; TypeError as
        NoiseSchedule.at.
    """
    _positive(t, schedule)
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
    columns = []
    for t in range(1, schedule.T + 1):
        columns.append(
            vlb_term(
                eps_model,
                x_0,
                t,
                draw(x_0, generator),
                schedule,
                variance=variance,
                decoder=decoder,
            )
        )
    columns.append(prior_kl(x_0, schedule))
    return torch.stack(columns, 1)


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
    _check_decoder(decoder)
    t_, s_ = _step_times(torch.tensor(t), torch.tensor(t - 1), schedule)
    x_t = q_sample(x_0, t, eps, schedule)
    predicted = eps_model(x_t, torch.full((x_0.shape[0],), t))
    model_mean = ddpm_step(predicted, x_t, t_, s_, torch.zeros_like(x_t), schedule).double()
    t_sigma = torch.tensor(max(t, 2) if variance == "posterior" else t)
    alpha_bars = schedule.alpha_bar_at(t_sigma), schedule.alpha_bar_at(t_sigma - 1)
    sigma = expand(_sigma(*alpha_bars, variance), model_mean)
    if t == 1:
        return decoder_nll(x_0.double(), model_mean, sigma, decoder)
    mean, var = q_posterior(x_0.double(), x_t.double(), t_, s_, schedule)
    return gaussian_kl(mean, var, model_mean, sigma**2).flatten(1).sum(1)


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
    _check_decoder(decoder)
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


def _check_decoder(decoder: str) -> None:
    if decoder not in get_args(Decoder):
        raise ValueError(f"decoder = {decoder!r} is unknown; choose one of {get_args(Decoder)}")


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


def clip_x0(
    eps_model: EpsModel, schedule: NoiseSchedule, low: float = -1.0, high: float = 1.0
) -> EpsModel:
    """The model with its predicted x_0 clipped to the range of the data; eps is derived
    again from the clipped x_0.

    Equation: DDPM eq. 15 clipped, then eq. 4 solved for eps. (Not in the paper's text;
        its released code clips.)
    Shapes: an EpsModel in, an EpsModel out.
    Raises: ValueError if low >= high.
    """
    if not low < high:
        raise ValueError(f"low = {low} must be below high = {high}")

    def clipped(x_t: Tensor, t: Tensor) -> Tensor:
        x_0 = predict_x0(eps_model(x_t, t), x_t, t, schedule)
        return predict_eps(x_0.clamp(low, high), x_t, t, schedule)

    return clipped
