"""Checks of arguments, shared by the modules. Every message names the argument, its
value and what would be right."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None
Time = Tensor | int | float
_NO_TIMES = (torch.float16, torch.bfloat16, torch.bool)


class UsageError(ValueError):
    """What was asked for cannot be done, and the message says what would be right. The command
    line shows it as one line; any other ValueError is a bug, and keeps its traceback."""


def as_time(t: Time, low: float, high: float, name: str = "t") -> Tensor:
    """The time as a float64 tensor on the CPU, after its dtype and its domain are
    checked.

    Shapes: t, any; the result has the same.
    Returns: float64 tensor on the CPU.
    Raises: TypeError for half-precision, complex or boolean times (bfloat16 rounds 997
        to 996); ValueError outside low <= t <= high, or if not finite.
    """
    t = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64)
    if t.dtype in _NO_TIMES or t.is_complex():
        raise TypeError(
            f"{name} has dtype {t.dtype}, which cannot hold every time step; use int64, float32 "
            "or float64"
        )
    t = t.detach().to("cpu", torch.float64)
    if t.numel() == 0:
        return t
    least, most = (end.item() for end in t.aminmax())  # NaN if one of them is
    if low <= least and most <= high and most < math.inf:
        return t  # ten times faster than comparing every one
    inside = (t >= low) & (t <= high) & t.isfinite()
    wrong = t[~inside].flatten()[0].item()
    raise ValueError(f"{name} = {wrong:g} is outside its domain {low:g} <= {name} <= {high:g}")


def check_before(s: Tensor, t: Tensor) -> None:
    """Raise ValueError unless s < t everywhere (and the two broadcast)."""
    try:
        before = s < t
    except RuntimeError:
        raise ValueError(
            f"s {tuple(s.shape)} and t {tuple(t.shape)} do not broadcast; give both as () or (B,)"
        ) from None
    if not bool(before.all()):
        s, t = torch.broadcast_tensors(s, t)
        raise ValueError(
            f"s = {s[~before][0]:g} is not before t = {t[~before][0]:g}; a step goes from t to "
            "an earlier s < t"
        )


def check_device(device: str) -> torch.device:
    """The device of this name.

    Raises: UsageError if torch does not know it or cannot compute on it on this machine.
    """
    try:
        there = torch.zeros((), device=device)
        there.item()  # "meta" holds tensors, but no numbers
        return there.device
    except NotImplementedError:
        reason = "this PyTorch was built without it"  # and says so on a page
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = re.split(r"\.\s|\n", str(error))[0]
    raise UsageError(
        f"device = {device!r} is not available on this machine ({reason}); choose 'cpu', or "
        "'cuda' where torch.cuda.is_available()"
    )


def check_labels(y: Tensor, classes: int, n: int, name: str = "labels") -> None:
    """Raise UsageError unless y holds n whole numbers in 0..classes - 1: one past them
    would be the null label. (It waits for y's device: call it where labels enter.)"""
    if y.shape != (n,) or y.dtype != torch.int64:
        raise UsageError(
            f"{name} have shape {tuple(y.shape)} and dtype {y.dtype}, expected ({n},) and int64"
        )
    wrong = y[(y < 0) | (y >= classes)]
    if len(wrong):
        raise UsageError(f"{name}: {wrong[0].item()} is out of range, expected 0..{classes - 1}")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise UsageError unless the value is one of a Literal's."""
    known = get_args(choices)
    if value not in known:
        raise UsageError(f"{name} = {value!r} is unknown; choose one of {known}")


def check_whole(name: str, value: int, least: int) -> None:
    """Raise TypeError unless the value is an int, UsageError if it is below the least."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} = {value!r} is {type(value).__name__}, expected int")
    if value < least:
        raise UsageError(f"{name} = {value} must be at least {least}")


def check_same_shape(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless the two tensors have one shape."""
    if x.shape != other.shape:
        raise ValueError(
            f"{name} {tuple(x.shape)} and {other_name} {tuple(other.shape)} must have the same "
            "shape"
        )


def check_batch(t: Tensor, like: Tensor, name: str = "t") -> None:
    """Raise ValueError unless t is () or (B,), B being like's first size."""
    if t.ndim > 1 or (t.ndim == 1 and (like.ndim == 0 or t.shape[0] != like.shape[0])):
        raise ValueError(
            f"{name} has shape {tuple(t.shape)}, which fits no batch of shape "
            f"{tuple(like.shape)}; give () or (B,) with B = "
            f"{like.shape[0] if like.ndim else 'the batch size'}"
        )


def check_grid(times: Tensor, T: int, *, to_data: bool = True) -> Tensor:
    """The time grid of a sampler, checked: one-dimensional, at least two entries,
    strictly decreasing, within T .. 0, ending at 0 (unless to_data is False).

    Returns: the grid on the CPU, dtype kept.
    Raises: TypeError if not a tensor; ValueError naming the first entry that is wrong.
    """
    if not isinstance(times, Tensor):
        raise TypeError(
            f"times must be a tensor such as timesteps(T, S), got {type(times).__name__}"
        )
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(
            f"times has shape {tuple(times.shape)}; give a one-dimensional grid of at least two "
            "times"
        )
    grid = as_time(times, 0, T, "times")
    falls = grid[1:] < grid[:-1]
    if not bool(falls.all()):
        i = int((~falls).nonzero()[0, 0])
        raise ValueError(
            f"times must strictly decrease, but times[{i}] = {grid[i]:g} is followed by "
            f"{grid[i + 1]:g}"
        )
    if to_data and grid[-1] != 0:
        raise ValueError(f"times must end at 0 (the data), but ends at {grid[-1]:g}")
    return times.detach().cpu()


def check_generators(generator: Generators, batch: int) -> None:
    """Raise ValueError unless there is no generator, one, or one per image."""
    if (
        generator is not None
        and not isinstance(generator, torch.Generator)
        and len(generator) != batch
    ):
        raise ValueError(
            f"{len(generator)} generators for a batch of {batch}; give one generator, or one per "
            "image"
        )


def check_finite(name: str, value: float) -> None:
    """Raise ValueError unless the number is finite."""
    if not math.isfinite(value):
        raise ValueError(f"{name} = {value} must be a finite number")


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless the number lies in 0..1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} = {value} must lie in 0..1")
