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


def check(claim: str, measured: Any, within: float, *, equation: str | None = None) -> None:
    """Assert that |measured| <= within, and print one line that is the same on every
    machine.

    `measured` is a number, or a tensor whose largest absolute value counts: an error, a
    difference, a residual. To claim "at least", measure the shortfall. `equation` is
    the text of the \\tag it proves. If DIFFUSION_LEDGER names a file, the residual is
    appended to it as one line of JSON (the chapter from DIFFUSION_CHAPTER).

    Shapes: measured () or any.
    Raises: CheckFailed (an AssertionError) if the bound is exceeded or the value is
        NaN; ValueError for an empty measurement or a bound that is negative or not
        finite.
    """
    if not (isinstance(within, (int, float)) and 0 <= within < math.inf):
        raise ValueError(f"within = {within!r} must be a finite number, at least 0")
    values = torch.as_tensor(measured).detach().double().abs()
    if values.numel() == 0:
        raise ValueError(f"nothing was measured for the claim {claim!r}")
    value = math.nan if bool(values.isnan().any()) else values.max().item()
    tag = f" [{equation}]" if equation else ""
    if not value <= within:
        raise CheckFailed(f"{claim}{tag}: measured {value:.6g}, not within {within:g}")
    _record(claim, value, within, equation)
    print(f"✓ {claim}{tag} (within {within:g})")


def _record(claim: str, value: float, within: float, equation: str | None) -> None:
    path = os.environ.get("DIFFUSION_LEDGER")
    if path:
        line = {
            "claim": claim,
            "measured": value,
            "within": within,
            "equation": equation,
            "chapter": os.environ.get("DIFFUSION_CHAPTER"),
        }
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
