"""check(): one stable printed line for each claim of the book, and an error with the
numbers when it does not hold."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import torch


class CheckFailed(AssertionError):
    """A claim of the book does not hold; the message has the numbers."""


def check(
    claim: str,
    measured: Any,
    within: float | None = None,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    equation: str | None = None,
) -> None:
    """Assert that a measurement keeps its bound, and print one line that is the same on
    every machine.

    Exactly one bound is given: `within`, for an error, a difference, a residual:
    |measured| <= within (0: exact); or `at_most`, or `at_least`. Of a tensor every
    element must keep it. `equation` is the text of the \\tag it proves. If
    DIFFUSION_LEDGER names a file, the element that comes nearest to the bound is
    appended to it as one line of JSON (the chapter from DIFFUSION_CHAPTER).

    Shapes: measured () or any.
    Raises: CheckFailed (an AssertionError) if the bound is exceeded or a value is NaN;
        TypeError unless exactly one bound is given; ValueError for an empty
        measurement, a bound that is not finite, or a negative `within`.
    """
    bounds = {"within": within, "at most": at_most, "at least": at_least}
    given = {name: value for name, value in bounds.items() if value is not None}
    if len(given) != 1:
        raise TypeError(f"give one of within, at_most and at_least, not {len(given)}")
    ((kind, limit),) = given.items()
    if not (isinstance(limit, (int, float)) and math.isfinite(limit)):
        raise ValueError(f"{kind} = {limit!r} must be a finite number")
    if kind == "within" and limit < 0:
        raise ValueError(f"within = {limit!r} must be at least 0")
    value = _nearest_to_the_bound(claim, measured, kind)
    bound = "exact" if (kind, limit) == ("within", 0) else f"{kind} {limit:g}"
    tag = f" [{equation}]" if equation else ""
    if not (value >= limit if kind == "at least" else value <= limit):
        raise CheckFailed(f"{claim}{tag}: measured {value:.6g}, not {bound}")
    _record(claim, value, bound, equation)
    print(f"✓ {claim}{tag} ({bound})")


def _nearest_to_the_bound(claim: str, measured: Any, kind: str) -> float:
    """The element that decides; NaN if there is any."""
    values = torch.as_tensor(measured).detach().double()
    if values.numel() == 0:
        raise ValueError(f"nothing was measured for the claim {claim!r}")
    if bool(values.isnan().any()):
        return math.nan
    if kind == "within":
        values = values.abs()
    return (values.min() if kind == "at least" else values.max()).item()


def _record(claim: str, value: float, bound: str, equation: str | None) -> None:
    path = os.environ.get("DIFFUSION_LEDGER")
    if path:
        line = {
            "claim": claim,
            "measured": value,
            "bound": bound,
            "equation": equation,
            "chapter": os.environ.get("DIFFUSION_CHAPTER"),
        }
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
