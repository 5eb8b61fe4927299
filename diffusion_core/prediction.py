"""What a network predicts, and how one prediction becomes another: noise, data, velocity.

Everything in the book is in terms of an EpsModel, a function (x_t (B, *), t (B,)) ->
eps (B, *). Every function here keeps the dtype and device of the state, and raises
ValueError if shapes do not fit or t is outside its domain, TypeError as NoiseSchedule.at.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from diffusion_core._validate import Time, as_time, check_same_shape
from diffusion_core.schedules import NoiseSchedule

EpsModel = Callable[[Tensor, Tensor], Tensor]


def predict_x0(eps: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """The data that x_t would come from if its noise were eps.

    Equation: DDPM eq. 15, x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t).
    Shapes: eps, x_t (B, *); t () or (B,), 0 <= t <= T.
    Returns: x_0 (B, *).
    """
    check_same_shape("eps", eps, "x_t", x_t)
    signal_rate, noise_rate = schedule.at(t, x_t)
    return ((x_t - noise_rate * eps) / signal_rate).to(x_t)


def predict_eps(x_0: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """The noise that leads from x_0 to x_t: predict_x0 solved for eps.

    Equation: DDPM eq. 4, eps = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t).
    Shapes: x_0, x_t (B, *); t () or (B,), 0 < t <= T (at t = 0 there is no noise to find).
    Returns: eps (B, *).
    """
    check_same_shape("x_0", x_0, "x_t", x_t)
    t = check_noisy(t, schedule)
    signal_rate, noise_rate = schedule.at(t, x_t)
    return ((x_t - signal_rate * x_0) / noise_rate).to(x_t)


def predict_v(x_0: Tensor, eps: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """The velocity v of the circle on which (x_0, eps) rotates into x_t.

    Equation: Salimans & Ho 2022 sec. 4

            v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0
    Shapes: x_0, eps (B, *); t () or (B,), 0 <= t <= T.
    Returns: v (B, *).
    """
    check_same_shape("x_0", x_0, "eps", eps)
    signal_rate, noise_rate = schedule.at(t, x_0)
    return (signal_rate * eps - noise_rate * x_0).to(x_0)


def eps_from_v(v: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """The noise, from a velocity and the state: the inverse rotation.

    Equation: Salimans & Ho 2022 sec. 4

            eps = sqrt(alpha_bar_t) v + sqrt(1 - alpha_bar_t) x_t
    Shapes: v, x_t (B, *); t () or (B,), 0 <= t <= T.
    Returns: eps (B, *).
    """
    check_same_shape("v", v, "x_t", x_t)
    signal_rate, noise_rate = schedule.at(t, x_t)
    return (signal_rate * v + noise_rate * x_t).to(x_t)


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


def check_noisy(t: Time, schedule: NoiseSchedule) -> Tensor:
    """t as as_time gives it; ValueError unless 0 < t <= T."""
    t = as_time(t, 0, schedule.T)
    if not bool((t > 0).all()):
        raise ValueError("t = 0 is outside its domain 0 < t <= T: the data holds no noise")
    return t
