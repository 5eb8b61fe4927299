"""Exact models: data whose noised density is known in closed form, so that every
formula can be tested without a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_core._validate import Time, check_batch
from diffusion_core.schedules import NoiseSchedule

TimeFunction = Callable[[Tensor, Time], Tensor]


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Data drawn from K isotropic normal distributions. Noised to time t it is such a
    mixture again.

    Equation: the data, and by DDPM eq. 4 the data noised to time t:

            p_0(x) = sum_k w_k N(x; mu_k, s_k^2 I)
            p_t(x) = sum_k w_k N(x; sqrt(alpha_bar_t) mu_k, var_k I)
            var_k = alpha_bar_t s_k^2 + 1 - alpha_bar_t
    Shapes: weights (K,), positive, sum 1; means (K, D); stds (K,), >= 0 (0 is a point).
        Kept in float64 on the CPU. The functions made from it take x (B, D), or (B, *)
        with D elements each, and t () or (B,).
    Raises: ValueError if shapes do not fit, a weight or a std is negative, or the
        weights do not sum to 1.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def __post_init__(self) -> None:
        for name in ("weights", "means", "stds"):
            value = torch.as_tensor(getattr(self, name)).detach().to("cpu", torch.float64).clone()
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name} holds a value that is not finite")
            object.__setattr__(self, name, value)
        K = self.weights.numel()
        fits = self.weights.shape == self.stds.shape == (K,) and self.means.shape[:-1] == (K,)
        if not fits:
            shapes = tuple(self.weights.shape), tuple(self.means.shape), tuple(self.stds.shape)
            raise ValueError(
                f"weights {shapes[0]}, means {shapes[1]}, stds {shapes[2]}: expected (K,), (K, "
                "D), (K,)"
            )
        if bool((self.weights <= 0).any()) or abs(self.weights.sum().item() - 1) > 1e-6:
            raise ValueError(f"weights = {self.weights.tolist()} must be positive and sum to 1")
        if bool((self.stds < 0).any()):
            raise ValueError(f"stds = {self.stds.tolist()} must be at least 0")

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points of data.

        Shapes: result (n, D), float64.
        """
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[component] + self.stds[component, None] * noise

    def log_prob(self, schedule: NoiseSchedule) -> TimeFunction:
        """log p_t(x), the log density of the noised data.

        Equation: log sum_k w_k N(x; sqrt(alpha_bar_t) mu_k, var_k I).
        Shapes: returned function: x (B, *), t () or (B,) -> (B,).
        Raises (when called): ValueError at t = 0 if a std is 0 (a point has no
            density).
        """
        return lambda x, t: self._log_joint(x, t, schedule)[0].logsumexp(1).to(x)

    def log_posterior(self, schedule: NoiseSchedule, component: int) -> TimeFunction:
        """log p(component | x_t), the perfect noise-aware classifier.

        Equation: Bayes' rule, w_k N_k(x) / sum_j w_j N_j(x).
        Shapes: returned function: x (B, *), t () or (B,) -> (B,).
        Raises: ValueError if there is no such component.
        """
        self._check_component(component)
        return lambda x, t: self._log_joint(x, t, schedule)[0].log_softmax(1)[:, component].to(x)

    def score(self, schedule: NoiseSchedule, component: int | None = None) -> TimeFunction:
        """The gradient of log p_t with respect to x, of the mixture or of one
        component.

        Equation: sum_k p(k | x_t) (sqrt(alpha_bar_t) mu_k - x_t) / var_k.
        Shapes: returned function: x (B, *), t () or (B,) -> (B, *).
        Raises: ValueError if there is no such component.
        """
        self._check_component(component)

        def score(x: Tensor, t: Time) -> Tensor:
            log_joint, offset, variance = self._log_joint(x, t, schedule)
            each = -offset / variance[..., None]
            if component is not None:
                return each[:, component].reshape(x.shape).to(x)
            return (log_joint.softmax(1)[..., None] * each).sum(1).reshape(x.shape).to(x)

        return score

    def eps_model(self, schedule: NoiseSchedule, component: int | None = None) -> TimeFunction:
        """The perfect EpsModel: what a network trained for ever on this data would
        predict.

        Equation: eps(x_t, t) = E[eps | x_t] = -sqrt(1 - alpha_bar_t) score(x_t, t)
            (Vincent 2011; Y. Song et al. 2021 sec. 3.3).
        Shapes: returned function: x (B, *), t () or (B,) -> (B, *).
        Raises: ValueError if there is no such component.
        """
        score = self.score(schedule, component)
        return lambda x, t: -schedule.at(t, x)[1] * score(x, t)

    def _check_component(self, component: int | None) -> None:
        if component is not None and not 0 <= component < len(self.weights):
            raise ValueError(f"component = {component} must be in 0..{len(self.weights) - 1}")

    def _log_joint(
        self, x: Tensor, t: Time, schedule: NoiseSchedule
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k N_k(x) (B, K), x - mean_k (B, K, D), and the variances (B or 1, K),
        all float64 on the CPU."""
        flat = x.to("cpu", torch.float64).flatten(1)
        if flat.shape[1] != self.means.shape[1]:
            raise ValueError(
                f"x {tuple(x.shape)} has {flat.shape[1]} elements a sample, but the mixture "
                f"lives in D = {self.means.shape[1]}"
            )
        alpha_bar = schedule.alpha_bar_at(t)
        check_batch(alpha_bar, x)
        alpha_bar = alpha_bar.reshape(-1, 1)
        variance = alpha_bar * self.stds**2 + (1 - alpha_bar)
        if not bool((variance > 0).all()):
            raise ValueError(
                "at t = 0 a component with std 0 is a point, which has no density; use t > 0 or "
                "a std above 0"
            )
        offset = flat[:, None, :] - alpha_bar.sqrt()[..., None] * self.means
        log_normal = (
            -0.5 * (offset**2).sum(2) / variance
            - 0.5 * self.means.shape[1] * (2 * math.pi * variance).log()
        )
        return self.weights.log() + log_normal, offset, variance
