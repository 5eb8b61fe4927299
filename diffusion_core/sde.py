"""Score-based models in continuous time (Y. Song et al. 2021): three stochastic
differential equations dx = f(x, t) dt + g(t) dw, their reversal, the ODE with the same
densities, and solvers for both.

Time is counted in steps of the chain, 0 <= t <= T, and may be any real number; dw over a
time dt is sqrt(dt) times standard normal noise. A score is a function (x (B, *), t ()
or (B,)) -> (B, *), the gradient of log p_t(x). Coefficients are computed in float64 and
cast once; results keep the dtype and device of the state. Every function raises
ValueError if shapes do not fit or a time is outside its domain, TypeError as
NoiseSchedule.at.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_core._validate import (
    Generators,
    Time,
    as_time,
    check_generators,
    check_grid,
    check_same_shape,
    check_whole,
)
from diffusion_core.prediction import EpsModel, check_noisy
from diffusion_core.sampling import Step, draw, walk
from diffusion_core.schedules import NoiseSchedule, expand

Score = Callable[[Tensor, Tensor], Tensor]


class SDE(ABC):
    """A forward process dx = a(t) x dt + g(t) dw on 0 <= t <= T: its drift is a number
    times x, so noised data are x_t = signal x_0 + noise eps, as in DDPM."""

    @property
    @abstractmethod
    def T(self) -> int:
        """The time at which data have become noise."""

    @abstractmethod
    def coefficients(self, t: Time) -> tuple[Tensor, Tensor]:
        """a(t) and g(t), float64 on the CPU, of t's shape."""

    @abstractmethod
    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        """The signal and the noise rate at t, float64 on the CPU, of t's shape."""

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Where x goes on average, per unit of time.

        Equation: Y. Song et al. 2021 eq. 5, f(x, t); here a(t) x.
        Shapes: x (B, *); t () or (B,), 0 <= t <= T.
        Returns: (B, *).
        """
        return expand(self.coefficients(t)[0], x) * x

    def diffusion(self, t: Time, like: Tensor) -> Tensor:
        """How much noise comes in: over a short time dt with variance g(t)^2 dt.

        Equation: Y. Song et al. 2021 eq. 5, g(t).
        Shapes: t () or (B,), 0 <= t <= T; like (B, *); result () or (B, 1, ..., 1).
        """
        return expand(self.coefficients(t)[1], like)

    def marginal(self, t: Time, like: Tensor) -> tuple[Tensor, Tensor]:
        """The pair of rates (signal, noise) with which data arrive at t.

        Equation: Y. Song et al. 2021 eq. 29, x_t = signal x_0 + noise eps.
        Shapes: t () or (B,), 0 <= t <= T; like (B, *); both () or (B, 1, ..., 1).
        """
        signal_rate, noise_rate = self.rates(t)
        return expand(signal_rate, like), expand(noise_rate, like)


def continuous_beta(t: Time, schedule: NoiseSchedule) -> Tensor:
    """The noise that a chain adds per unit of time, at any real time.

    Equation: Y. Song et al. 2021 app. B, beta(t) = -d log alpha_bar / dt. Between whole
        times log alpha_bar is linear, so beta(t) is constant for k - 1 < t <= k:
        -log(1 - beta_k), which is beta_k + beta_k^2 / 2 + ...
    Shapes: t, any, 0 <= t <= T (t = 0 has the first step's); result the same.
    Returns: float64 on the CPU.
    """
    k = as_time(t, 0, schedule.T).ceil().clamp(min=1).long()
    depth = -schedule.alpha_bar.log()
    return depth[k] - depth[k - 1]


@dataclass(frozen=True, eq=False)
class VPSDE(SDE):
    """The variance-preserving SDE of a schedule. At whole times its marginals are those of
    the chain, exactly.

    Equation: Y. Song et al. 2021 eq. 11 and 29, with beta(t) = continuous_beta:

            dx = -1/2 beta(t) x dt + sqrt(beta(t)) dw
            signal = sqrt(alpha_bar_t), noise = sqrt(1 - alpha_bar_t)
    """

    schedule: NoiseSchedule

    @property
    def T(self) -> int:
        """Number of steps of the chain."""
        return self.schedule.T

    def coefficients(self, t: Time) -> tuple[Tensor, Tensor]:
        """a(t) = -beta(t) / 2 and g(t) = sqrt(beta(t)), float64 on the CPU."""
        beta = continuous_beta(t, self.schedule)
        return -0.5 * beta, beta.sqrt()

    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), float64 on the CPU."""
        alpha_bar = self.schedule.alpha_bar_at(t)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


@dataclass(frozen=True, eq=False)
class SubVPSDE(SDE):
    """The sub-VP SDE: the same drift as VPSDE, and less noise on the way.

    Equation: Y. Song et al. 2021 eq. 12 and 29, with exp(-integral of beta) = alpha_bar_t:

            dx = -1/2 beta(t) x dt + sqrt(beta(t) (1 - alpha_bar_t^2)) dw
            signal = sqrt(alpha_bar_t), noise = 1 - alpha_bar_t
    """

    schedule: NoiseSchedule

    @property
    def T(self) -> int:
        """Number of steps of the chain."""
        return self.schedule.T

    def coefficients(self, t: Time) -> tuple[Tensor, Tensor]:
        """a(t) = -beta(t) / 2 and g(t), float64 on the CPU."""
        beta, alpha_bar = continuous_beta(t, self.schedule), self.schedule.alpha_bar_at(t)
        return -0.5 * beta, (beta * (1 - alpha_bar**2)).sqrt()

    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and 1 - alpha_bar_t, float64 on the CPU."""
        alpha_bar = self.schedule.alpha_bar_at(t)
        return alpha_bar.sqrt(), 1 - alpha_bar


@dataclass(frozen=True, eq=False)
class VESDE(SDE):
    """The variance-exploding SDE: the data stay as they are, ever more noise comes on top.

    Equation: Y. Song et al. 2021 eq. 9, 29 and 30, time counted 0..T in place of 0..1:

            sigma(t) = sigma_min (sigma_max / sigma_min)^(t / T)
            dx = sigma(t) sqrt(2 log(sigma_max / sigma_min) / T) dw
            signal = 1, noise = sqrt(sigma(t)^2 - sigma_min^2)

        (Their code, and eq. 31, take sigma(t) itself for the noise.)
    Raises: ValueError unless 0 < sigma_min < sigma_max and T >= 1; TypeError unless T
        is int.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    T: int = 1000

    def __post_init__(self) -> None:
        check_whole("T", self.T, 1)
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"sigma_min = {self.sigma_min} and sigma_max = {self.sigma_max}: expected "
                "0 < sigma_min < sigma_max"
            )

    def sigma(self, t: Time) -> Tensor:
        """sigma(t), float64 on the CPU, of t's shape."""
        share = as_time(t, 0, self.T) / self.T
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** share

    def coefficients(self, t: Time) -> tuple[Tensor, Tensor]:
        """a(t) = 0 and g(t), float64 on the CPU."""
        sigma = self.sigma(t)
        growth = math.log(self.sigma_max / self.sigma_min) / self.T
        return torch.zeros_like(sigma), sigma * math.sqrt(2 * growth)

    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        """1 and sqrt(sigma(t)^2 - sigma_min^2), float64 on the CPU."""
        sigma = self.sigma(t)
        return torch.ones_like(sigma), (sigma**2 - self.sigma_min**2).sqrt()


def score_from_eps(eps_model: EpsModel, schedule: NoiseSchedule, sde: SDE | None = None) -> Score:
    """The score that a noise predictor knows: of the VP-SDE of its schedule, or of another
    SDE. For that, x is rescaled to what the model was trained on at the time with the
    same ratio of noise to signal.

    Equation: Y. Song et al. 2021 sec. 3.3 with DDPM eq. 4, score = -eps / noise.
    Shapes: returned function: x (B, *), t () or (B,), 0 < t <= T -> (B, *).
    Raises (when called): ValueError at t = 0, where there is no noise, or for a ratio
        above the schedule's last one.
    """

    if sde is None:
        return lambda x, t: -_ask(eps_model, x, check_noisy(t, schedule)) / schedule.at(t, x)[1]

    def matched(x: Tensor, t: Time) -> Tensor:
        signal_rate, noise_rate = sde.rates(t)
        time = check_noisy(schedule.time_at(noise_rate / signal_rate), schedule)
        seen = expand(schedule.alpha_bar_at(time).sqrt() / signal_rate, x) * x
        return -_ask(eps_model, seen, time) / expand(noise_rate, x)

    return matched


def reverse_drift(x: Tensor, t: Time, score: Score, sde: SDE) -> Tensor:
    """The drift of the process that runs from noise to data; its noise is the forward
    process's. Per unit of t: a step back multiplies it by dt < 0.

    Equation: Y. Song et al. 2021 eq. 6, f(x, t) - g(t)^2 score(x, t).
    Shapes: x (B, *); t () or (B,), 0 < t <= T.
    Returns: (B, *).
    """
    return sde.drift(x, t) - sde.diffusion(t, x) ** 2 * score(x, torch.as_tensor(t))


def probability_flow_drift(x: Tensor, t: Time, score: Score, sde: SDE) -> Tensor:
    """The velocity dx/dt of the ODE whose points have, at every time, the densities of the
    SDE.

    Equation: Y. Song et al. 2021 eq. 13, f(x, t) - 1/2 g(t)^2 score(x, t).
    Shapes: x (B, *); t () or (B,), 0 < t <= T.
    Returns: (B, *).
    """
    return sde.drift(x, t) - 0.5 * sde.diffusion(t, x) ** 2 * score(x, torch.as_tensor(t))


def euler_maruyama_step(
    drift: Tensor, x_t: Tensor, t: Time, s: Time, z: Tensor, sde: SDE
) -> Tensor:
    """One step of the reverse SDE from t to an earlier s, with the drift and the noise
    that belong to t.

    Equation: Y. Song et al. 2021 eq. 6 with dt = s - t, and dw = sqrt(t - s) z:

            x_s = x_t + (s - t) drift + g(t) sqrt(t - s) z
    Shapes: drift, x_t, z (B, *); t, s () or (B,), 0 <= s < t <= T.
    Returns: x_s (B, *).
    """
    check_same_shape("drift", drift, "x_t", x_t)
    check_same_shape("z", z, "x_t", x_t)
    t = as_time(t, 0, sde.T)
    length = t - as_time(s, 0, sde.T, "s")
    if not bool((length > 0).all()):
        raise ValueError("a step goes from t to an earlier s < t")
    noise = sde.diffusion(t, x_t) * expand(length.sqrt(), x_t) * z
    return (x_t - expand(length, x_t) * drift + noise).to(x_t)


def euler_maruyama(
    score: Score, x_T: Tensor, times: Tensor, sde: SDE, *, generator: Generators = None
) -> Iterator[Step]:
    """Sample with the reverse SDE along a grid of times, whole or real. The last step, to
    0, adds no noise.

    Equation: Y. Song et al. 2021 eq. 6, each step as in euler_maruyama_step. The
        predicted x_0 is Tweedie's formula, (x + noise^2 score) / signal.
    Shapes: x_T (B, *), noise at times[0]; times (S+1,), strictly decreasing to 0.
    Returns: an iterator of S Steps; nothing runs until it is iterated.
    Raises: at the call: TypeError or ValueError for a bad grid, ValueError for a wrong
        number of generators.
    """
    times = check_grid(times, sde.T)
    check_generators(generator, x_T.shape[0])
    return _euler_maruyama(score, x_T, times, sde, generator)


@torch.no_grad()
def _euler_maruyama(
    score: Score, x: Tensor, times: Tensor, sde: SDE, generator: Generators
) -> Iterator[Step]:
    for t, s in itertools.pairwise(times):
        x, x_0 = _predicted(score, x, t, s, sde, generator)
        yield Step(s, x, x_0)


def _predicted(
    score: Score, x: Tensor, t: Tensor, s: Tensor, sde: SDE, generator: Generators
) -> tuple[Tensor, Tensor]:
    """A step of the reverse SDE, and the x_0 that the score at its start predicts."""
    known = score(x, t.expand(x.shape[0]))
    signal_rate, noise_rate = sde.marginal(t, x)
    x_0 = (x + noise_rate**2 * known) / signal_rate
    drift = reverse_drift(x, t, lambda x, t: known, sde)
    z = draw(x, generator) if s > 0 else torch.zeros_like(x)
    return euler_maruyama_step(drift, x, t, s, z, sde), x_0


def langevin_step(score: Tensor, x: Tensor, t: Time, z: Tensor, sde: SDE, snr: float) -> Tensor:
    """One step at a standing time: up the score, with as much noise as keeps p_t(x) what it
    is. Errors of the steps before it fade.

    Equation: Y. Song et al. 2021 alg. 4 and 5, with norms averaged over the batch, and
        their alpha_i = exp(2 a(t)), which is 1 for the VE-SDE:

            length = 2 alpha_i (snr |z| / |score|)^2
            x + length score + sqrt(2 length) z
    Shapes: score, x, z (B, *); t () or (B,), 0 < t <= T.
    Returns: (B, *).
    """
    check_same_shape("score", score, "x", x)
    check_same_shape("z", z, "x", x)
    share = snr * z.flatten(1).norm(dim=1).mean() / score.flatten(1).norm(dim=1).mean()
    length = 2 * expand((2 * sde.coefficients(t)[0]).exp(), x) * share**2
    return (x + length * score + (2 * length).sqrt() * z).to(x)


def predictor_corrector_sample(
    score: Score,
    x_T: Tensor,
    times: Tensor,
    sde: SDE,
    *,
    snr: float = 0.16,
    corrections: int = 1,
    generator: Generators = None,
) -> Iterator[Step]:
    """Sample with the reverse SDE, and correct the state after every step but the last, which
    goes to 0: corrections + 1 evaluations of the score a step.

    Equation: Y. Song et al. 2021 alg. 1 with a step of euler_maruyama as the predictor and
        langevin_step as the corrector.
    Shapes, Returns, Raises: as euler_maruyama(); ValueError unless snr > 0 and
        corrections >= 0.
    """
    times = check_grid(times, sde.T)
    check_generators(generator, x_T.shape[0])
    check_whole("corrections", corrections, 0)
    if not 0 < snr < math.inf:
        raise ValueError(f"snr = {snr} must be a finite number above 0")
    return _predictor_corrector(score, x_T, times, sde, snr, corrections, generator)


@torch.no_grad()
def _predictor_corrector(
    score: Score,
    x: Tensor,
    times: Tensor,
    sde: SDE,
    snr: float,
    corrections: int,
    generator: Generators,
) -> Iterator[Step]:
    for t, s in itertools.pairwise(times):
        x, x_0 = _predicted(score, x, t, s, sde, generator)
        for _ in range(corrections * bool(s > 0)):
            z = draw(x, generator)
            x = langevin_step(score(x, s.expand(x.shape[0])), x, s, z, sde, snr)
        yield Step(s, x, x_0)


def heun_step(
    eps_model: EpsModel, eps: Tensor, x_t: Tensor, t: Time, s: Time, schedule: NoiseSchedule
) -> Tensor:
    """One step of Heun's method from t to an earlier s: Euler's step (DDIM's) first, then
    once more with the mean of the noise predicted at its two ends. At s = 0 Euler's.

    Equation: EDM alg. 1, in x / sqrt(alpha_bar) and sigma = sqrt((1 - alpha_bar) /
        alpha_bar), where the probability flow is d(x / sqrt(alpha_bar)) / d sigma = eps:

            x_s / sqrt(alpha_bar_s) = x_t / sqrt(alpha_bar_t)
                                    + (sigma_s - sigma_t) (eps + eps') / 2
    Shapes: eps, the model's at x_t, and x_t (B, *); t, s (), 0 <= s < t <= T.
    Returns: x_s (B, *).
    """
    check_same_shape("eps", eps, "x_t", x_t)
    alpha_bar_t, alpha_bar_s = schedule.alpha_bars(t, s)
    if alpha_bar_s.ndim or alpha_bar_t.ndim:
        raise ValueError("heun_step takes one t and one s for the whole batch, of shape ()")
    length = expand(_ratio(alpha_bar_s) - _ratio(alpha_bar_t), x_t)
    full, signal_rate = x_t / expand(alpha_bar_t.sqrt(), x_t), expand(alpha_bar_s.sqrt(), x_t)
    x_s = (signal_rate * (full + length * eps)).to(x_t)
    if alpha_bar_s == 1:
        return x_s
    ahead = _ask(eps_model, x_s, torch.as_tensor(s))
    return (signal_rate * (full + length * (eps + ahead) / 2)).to(x_t)


def heun_sample(
    eps_model: EpsModel, x_T: Tensor, times: Tensor, schedule: NoiseSchedule
) -> Iterator[Step]:
    """Sample with the probability-flow ODE by Heun's method: two network evaluations a
    step, one in the last. Nothing is drawn.

    Equation: EDM alg. 1, each step as in heun_step.
    Shapes, Returns, Raises: as walk().
    """

    def step(eps: Tensor, x_t: Tensor, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
        return heun_step(eps_model, eps, x_t, t, s, schedule)

    return walk(step, eps_model, x_T, times, schedule, noisy=False)


@torch.no_grad()
def log_likelihood(
    eps_model: EpsModel,
    x: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    *,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    probes: int = 0,
    generator: Generators = None,
) -> Tensor:
    """log p(x) in nats: x is carried along the probability flow to times[0], by Heun's
    method, and what the flow stretches on the way is added up.

    Equation: Y. Song et al. 2021 eq. 39, in full = x / sqrt(alpha_bar) and sigma =
        sqrt((1 - alpha_bar) / alpha_bar), where the flow's velocity is eps. (The D log
        sqrt(alpha_bar) is what the densities of full and x differ by.)

            log p(x) = log p_T(x_T) + D/2 log(alpha_bar_T / alpha_bar)
                     + integral of div_full eps(sqrt(alpha_bar) full, t) d sigma
    Shapes: x (B, *), whose time is times[-1]; times (S+1,), strictly decreasing, as a
        sampler's, but it may end above 0: no network has learnt t = 0. log_prior (B, *)
        -> (B,): log p_T at times[0], by default of standard normal noise.
        probes: 0 takes D derivatives; n > 0 estimates the divergence with n random signs
        (eq. 40).
    Returns: (B,), float64.
    Raises: TypeError or ValueError for a bad grid or a negative number of probes.
    """
    times = check_grid(times, schedule.T, to_data=False).flip(0)
    check_whole("probes", probes, 0)
    alpha_bar = schedule.alpha_bar_at(times)
    sigmas = _ratio(alpha_bar)
    vectors = [draw(x, generator).sign() for _ in range(probes)] or _axes(x)

    def flow(full: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """The velocity (B, *) and its divergence (B,) at the grid's i-th time."""
        with torch.enable_grad():
            full = full.detach().requires_grad_()
            eps = _ask(eps_model, expand(alpha_bar[i].sqrt(), full) * full, times[i])
            found = [torch.autograd.grad(eps, full, v, retain_graph=True)[0] for v in vectors]
        each = torch.stack([(v * g).flatten(1).double().sum(1) for v, g in zip(vectors, found)])
        return eps.detach(), each.sum(0) / max(probes, 1)

    full = x / expand(alpha_bar[0].sqrt(), x)
    stretched = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    for i, length in enumerate(sigmas.diff().tolist()):
        eps, trace = flow(full, i)
        ahead, trace_ahead = flow(full + length * eps, i + 1)
        full = full + length / 2 * (eps + ahead)
        weight, weight_ahead = _trapezoid(*sigmas[i : i + 2].tolist())
        stretched = stretched + weight * trace + weight_ahead * trace_ahead
    x_T = expand(alpha_bar[-1].sqrt(), full) * full
    log_p = (log_prior or _log_standard_normal)(x_T).to(stretched)
    D = x.shape[1:].numel()
    return log_p + D / 2 * (alpha_bar[-1] / alpha_bar[0]).log().item() + stretched


def _trapezoid(low: float, high: float) -> tuple[float, float]:
    """Weights of the two ends in an integral over sigma, by the trapezoid rule in log
    sigma: where noise is all there is, the divergence is D / sigma. (From sigma = 0, in
    sigma.)"""
    if low == 0:
        return high / 2, high / 2
    half = math.log(high / low) / 2
    return half * low, half * high


def _axes(x: Tensor) -> list[Tensor]:
    """The D unit vectors of x's space, each for the whole batch."""
    D = x.shape[1:].numel()
    return [one.reshape(1, *x.shape[1:]).expand_as(x) for one in torch.eye(D).to(x)]


def _log_standard_normal(x: Tensor) -> Tensor:
    """log N(x; 0, I), (B,)."""
    return (-0.5 * (x.double() ** 2 + math.log(2 * math.pi))).flatten(1).sum(1)


def _ask(eps_model: EpsModel, x: Tensor, t: Tensor) -> Tensor:
    """The model's eps at one time, or one for each of the batch."""
    return eps_model(x, t.expand(x.shape[0]))


def _ratio(alpha_bar: Tensor) -> Tensor:
    """Noise rate over signal rate."""
    return ((1 - alpha_bar) / alpha_bar).sqrt()
