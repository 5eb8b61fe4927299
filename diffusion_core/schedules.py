"""Noise schedules: the one table alpha_bar, its look-ups, and the grids of times that
samplers walk.

Index t is the paper's t (1..T); index 0 is the data, with alpha_bar[0] = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion_core._validate import (
    Time,
    as_time,
    check_batch,
    check_before,
    check_choice,
    check_whole,
)

Spacing = Literal["trailing", "leading", "linspace", "quadratic"]


def linear_betas(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Tensor:
    """Variances that grow linearly from beta_1 to beta_T.

    Equation: DDPM sec. 4, beta_1 = 1e-4 to beta_T = 0.02 over T = 1000 steps.
    Shapes: result (T,).
    Returns: float64 tensor.
    Raises: ValueError if T < 1 or an end lies outside (0, 1); TypeError unless T is int.
    """
    _check_betas(T, beta_1, beta_T)
    return torch.linspace(beta_1, beta_T, T, dtype=torch.float64)


def scaled_linear_betas(T: int = 1000, beta_1: float = 0.00085, beta_T: float = 0.012) -> Tensor:
    """Variances whose square roots grow linearly: the schedule of Stable Diffusion 1, 2
    and XL.

    Equation: sqrt(beta_t) linear in t ("scaled_linear" in diffusers), with the two ends
        that these models have.
    Shapes: result (T,).
    Returns: float64 tensor.
    Raises: ValueError if T < 1 or an end lies outside (0, 1); TypeError unless T is int.
    """
    _check_betas(T, beta_1, beta_T)
    return torch.linspace(math.sqrt(beta_1), math.sqrt(beta_T), T, dtype=torch.float64) ** 2


def cosine_betas(T: int = 1000, s: float = 0.008, beta_max: float = 0.999) -> Tensor:
    """Variances whose alpha_bar falls like a squared cosine, each capped at beta_max.

    Equation: Nichol & Dhariwal 2021 eq. 17; s is their small offset, not a time:

            f(t) = cos((t/T + s) / (1 + s) * pi/2)^2
            alpha_bar_t = f(t) / f(0)
            beta_t = min(1 - alpha_bar_t / alpha_bar_{t-1}, beta_max)
    Shapes: result (T,).
    Returns: float64 tensor.
    Raises: ValueError if T < 1, s < 0, or beta_max lies outside (0, 1); TypeError
        unless T is int.
    """
    _check_betas(T, beta_max, beta_max)
    if not s >= 0:
        raise ValueError(f"s = {s} must be at least 0 (the paper uses 0.008)")
    t = torch.arange(T + 1, dtype=torch.float64)
    f = torch.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=beta_max)


ScheduleName = Literal["linear", "scaled_linear", "cosine"]
_BETAS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "cosine": cosine_betas}


def _check_betas(T: int, *betas: float) -> None:
    check_whole("T", T, 1)
    for beta in betas:
        if not 0 < beta < 1:
            raise ValueError(
                f"beta = {beta} must lie strictly between 0 and 1: it is the variance added in "
                "one step"
            )


def _first(wrong: Tensor) -> int:
    """The index of the first True in a vector."""
    return int(wrong.nonzero()[0])


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """Cast a float64 coefficient once and shape it to broadcast over like.

    Shapes: coefficient () or (B,); like (B, *).
    Returns: () or (B, 1, ..., 1), dtype and device of like.
    Raises: ValueError if the coefficient's batch is not like's; TypeError unless like
        holds floating-point numbers.
    """
    if not like.is_floating_point():
        raise TypeError(
            f"images have dtype {like.dtype}, in which every rate would be rounded to 0 or 1; "
            "give floating-point numbers, such as from_uint8(pixels)"
        )
    check_batch(coefficient, like, "the coefficient")
    if coefficient.ndim:
        coefficient = coefficient.reshape(-1, *[1] * (like.ndim - 1))
    # non_blocking: a GPU goes on with its work while this small copy is under way
    return coefficient.to(like, non_blocking=like.is_cuda)


def _checked_table(alpha_bar: Tensor) -> Tensor:
    """A copy of the table on the CPU; raises as NoiseSchedule."""
    if not isinstance(alpha_bar, Tensor) or alpha_bar.dtype != torch.float64:
        found = getattr(alpha_bar, "dtype", type(alpha_bar).__name__)
        raise TypeError(
            f"alpha_bar must be a float64 tensor, got {found}; in float32 its differences "
            "lose their digits"
        )
    table = alpha_bar.detach().cpu().clone()
    if table.ndim != 1 or len(table) < 2:
        raise ValueError(f"alpha_bar has shape {tuple(table.shape)}, expected (T+1,) with T >= 1")
    if table.isnan().any():
        raise ValueError(f"alpha_bar[{_first(table.isnan())}] is NaN")
    if table[0] != 1:
        raise ValueError(f"alpha_bar[0] = {table[0]:g}, expected 1: index 0 is the data itself")
    falls = table[1:] < table[:-1]
    if not bool(falls.all()):
        t = _first(~falls) + 1
        raise ValueError(
            f"alpha_bar must strictly decrease, but alpha_bar[{t}] = {table[t]:g} >= "
            f"alpha_bar[{t - 1}] = {table[t - 1]:g}"
        )
    if table[-1] <= 0:
        t = _first(table <= 0)
        raise ValueError(
            f"alpha_bar[{t}] = {table[t]:g}, but alpha_bar must stay above 0: x_0 cannot be "
            "predicted from pure noise"
        )
    return table


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The table alpha_bar: how much of the signal's variance is left at each time.

    Equation: DDPM sec. 2, alpha_bar_t = prod_{r=1..t} (1 - beta_r), alpha_bar_0 = 1.
    Shapes: alpha_bar (T+1,), float64; kept on the CPU, as a copy.
    Raises: TypeError unless alpha_bar is a float64 tensor; ValueError unless it is
        (T+1,) with T >= 1, starts at 1, decreases strictly and stays above 0 (so that
        predict_x0 can divide by its root).
    """

    alpha_bar: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha_bar", _checked_table(self.alpha_bar))

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseSchedule:
        """The table of the chain with these variances.

        Equation: DDPM sec. 2, alpha_bar_t = prod_{r=1..t} (1 - beta_r).
        Shapes: betas (T,).
        Raises: as the class; ValueError if a beta lies outside (0, 1).
        """
        if not isinstance(betas, Tensor) or betas.ndim != 1 or len(betas) == 0:
            raise ValueError("betas must be a tensor of shape (T,) with T >= 1")
        fits = (betas > 0) & (betas < 1)
        if not bool(fits.all()):
            t = _first(~fits) + 1
            raise ValueError(f"beta_{t} = {betas[t - 1]:g} must lie strictly between 0 and 1")
        alphas = 1 - betas.detach().cpu().to(torch.float64)
        return cls(torch.cat([torch.ones(1, dtype=torch.float64), alphas.cumprod(0)]))

    @property
    def T(self) -> int:
        """Number of steps of the chain."""
        return len(self.alpha_bar) - 1

    @property
    def betas(self) -> Tensor:
        """The chain's variances, (T,) float64: betas[t - 1] is the paper's beta_t."""
        return 1 - self.alpha_bar[1:] / self.alpha_bar[:-1]

    def alpha_bar_at(self, t: Time) -> Tensor:
        """alpha_bar at any time, whole or real.

        Equation: the table at whole t; between them log alpha_bar is linear, the VP-SDE
            with piecewise-constant beta(t).
        Shapes: t, any; result the same.
        Returns: float64 on the CPU.
        Raises: ValueError outside 0 <= t <= T; TypeError for half-precision t.
        """
        return self._look_up(as_time(t, 0, self.T))

    def alpha_bars(self, t: Time, s: Time) -> tuple[Tensor, Tensor]:
        """alpha_bar at both ends of a step that goes from t to an earlier s.

        Shapes: t, s () or (B,); results the same.
        Returns: (alpha_bar_t, alpha_bar_s), float64 on the CPU.
        Raises: ValueError unless 0 <= s < t <= T; TypeError for half-precision times.
        """
        t, s = as_time(t, 0, self.T, "t"), as_time(s, 0, self.T, "s")
        check_before(s, t)
        return self._look_up(t), self._look_up(s)

    def _look_up(self, t: Tensor) -> Tensor:
        """alpha_bar_at, for times that are checked."""
        floor = t.floor()
        if torch.equal(t, floor):
            return self.alpha_bar.take(t.long())
        log_table, below, above = self.alpha_bar.log(), floor.long(), t.ceil().long()
        between = torch.exp(torch.lerp(log_table[below], log_table[above], t - floor))
        return torch.where(t == floor, self.alpha_bar[below], between)

    def at(self, t: Time, like: Tensor) -> tuple[Tensor, Tensor]:
        """The pair of rates (signal, noise), ready to multiply like.

        Equation: DDPM eq. 4, signal = sqrt(alpha_bar_t), noise = sqrt(1 - alpha_bar_t).

        Shapes: t () or (B,); like (B, *); both results () or (B, 1, ..., 1).
        Returns: two tensors in like's dtype, on its device, rounded once from float64.
        Raises: ValueError outside 0 <= t <= T, or if t does not fit like's batch;
            TypeError for half-precision t, or unless like holds floating-point numbers.
        """
        alpha_bar = self.alpha_bar_at(t)
        return expand(alpha_bar.sqrt(), like), expand((1 - alpha_bar).sqrt(), like)

    def beta_at(self, t: Time, like: Tensor) -> Tensor:
        """The variance beta_t of the chain's step t, ready to multiply like.

        Equation: DDPM eq. 2, beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}.
        Shapes: t () or (B,), whole numbers; like (B, *); result () or (B, 1, ..., 1).
        Raises: ValueError outside 1 <= t <= T, for a fractional t, or if t does not fit
            like's batch; TypeError as at().
        """
        t = as_time(t, 1, self.T)
        if not bool((t == t.round()).all()):
            raise ValueError(
                f"t = {t[t != t.round()].flatten()[0]:g} is not a whole step; beta_t belongs to "
                f"the steps 1..{self.T}"
            )
        return expand(1 - self.alpha_bar_at(t) / self.alpha_bar_at(t - 1), like)

    def snr(self, t: Time) -> Tensor:
        """Signal-to-noise ratio, a ratio of variances.

        Equation: Kingma et al. 2021 sec. 3.1 (variational diffusion models):

                SNR(t) = alpha_bar_t / (1 - alpha_bar_t)
        Shapes: t, any; result the same.
        Returns: float64 on the CPU; infinite at t = 0.
        Raises: ValueError outside 0 <= t <= T; TypeError for half-precision t.
        """
        alpha_bar = self.alpha_bar_at(t)
        return alpha_bar / (1 - alpha_bar)

    def time_at(self, noise_to_signal: Tensor | float) -> Tensor:
        """The real time at which noise / signal has this value.

        Equation: the inverse of sqrt((1 - alpha_bar_t) / alpha_bar_t).

        Shapes: noise_to_signal, any; result the same.
        Returns: float64 on the CPU, 0 <= t <= T.
        Raises: ValueError if a ratio is negative, or above the schedule's last one;
            TypeError for half precision.
        """
        last = ((1 - self.alpha_bar[-1]) / self.alpha_bar[-1]).sqrt().item()
        ratio = as_time(noise_to_signal, 0, last * (1 + 1e-12), "noise_to_signal")
        depth = -self.alpha_bar.log()
        wanted = torch.log1p(ratio**2)
        above = torch.searchsorted(depth, wanted, right=True).clamp(max=self.T)
        share = (wanted - depth[above - 1]) / (depth[above] - depth[above - 1])
        return (above - 1 + share).clamp(max=self.T)


def make_schedule(name: ScheduleName, T: int = 1000) -> NoiseSchedule:
    """A schedule by name, with its usual ends.

    Raises: ValueError for an unknown name; as linear_betas.
    """
    check_choice("schedule", name, ScheduleName)
    return NoiseSchedule.from_betas(_BETAS[name](T))


def timesteps(T: int, S: int, spacing: Spacing = "trailing") -> Tensor:
    """A decreasing grid of S steps through the times T .. 0.

    Equation: DDIM sec. 4.2 and app. D.2 (the subsequence tau; "quadratic" is
        tau_i = floor(c i^2), reaching 0.8 T as in the authors' code, ties moved up by
        one); "trailing", "leading" and "linspace" as diffusers names them, shifted to
        the paper's index ("trailing" rounds up where T / S is not whole, theirs to the
        nearest). Only "trailing" and "linspace" start at T.
    Shapes: result (S+1,), int64, strictly decreasing, last entry 0.
    Raises: ValueError unless 1 <= S <= T (2 <= S for "linspace" and "quadratic"), or
        for an unknown spacing; TypeError unless T and S are int.
    """
    check_choice("spacing", spacing, Spacing)
    least = 2 if spacing in ("linspace", "quadratic") else 1
    check_whole("T", T, 1)
    check_whole("S", S, least)
    if S > T:
        raise ValueError(f"S = {S} steps do not fit into a chain of T = {T}")
    i = torch.arange(S, dtype=torch.float64)
    if spacing == "trailing":
        rising = T - (i.flip(0) * T / S).floor()
    elif spacing == "leading":
        rising = 1 + i * (T // S)
    elif spacing == "linspace":
        rising = 1 + (i * (T - 1) / (S - 1)).round()
    else:
        rising = _ties_moved_up(1 + (i**2 * (0.8 * T / (S - 1) ** 2)).floor())
    return torch.cat([torch.zeros(1, dtype=torch.long), rising.long()]).flip(0)


def _ties_moved_up(rising: Tensor) -> Tensor:
    """The smallest strictly increasing whole numbers that are nowhere below the given
    ones."""
    i = torch.arange(len(rising))
    return torch.cummax(rising - i, 0).values + i


def karras_times(schedule: NoiseSchedule, S: int, rho: float = 7.0) -> Tensor:
    """Real times at which noise / signal follows EDM's grid, dense near the data.

    Equation: EDM eq. 5 for i < S, and sigma_S = 0; here sigma = noise / signal, with
        sigma_max at t = T and sigma_min at t = 1:

            sigma_i = (a + i/(S-1) (b - a))^rho,  a = sigma_max^(1/rho),  b = sigma_min^(1/rho)
    Shapes: result (S+1,), float64, strictly decreasing from T to 0.
    Raises: ValueError if S < 2 or rho < 1; TypeError unless S is int.
    """
    check_whole("S", S, 2)
    if not rho >= 1:
        raise ValueError(f"rho = {rho} must be at least 1 (EDM uses 7)")
    smallest, largest = (1 / schedule.snr(torch.tensor([1, schedule.T]))).sqrt() ** (1 / rho)
    sigmas = torch.lerp(largest, smallest, torch.arange(S, dtype=torch.float64) / (S - 1)) ** rho
    times = schedule.time_at(sigmas)
    times = torch.cat([times, torch.zeros(1, dtype=torch.float64)])
    times[0], times[-2] = schedule.T, 1.0
    return times
