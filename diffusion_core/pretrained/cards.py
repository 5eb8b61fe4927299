"""Weights and their card: what a net is, where it comes from and how good it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion_core._validate import UsageError
from diffusion_core.files import sha256, write_json, write_safetensors

WEIGHTS = Path(__file__).parents[1] / "weights"


def read_card(path: Path) -> dict[str, Any]:
    """Raises: UsageError if it is no card."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}); fetch or train it again") from error
    if not isinstance(card, dict) or not {"sha256", "net"} <= card.keys():
        raise UsageError(f"{path} is no card: it holds no sha256 and no net")
    return card


def save_net(
    net: nn.Module,
    name: str,
    card: dict[str, Any],
    folder: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write NAME.safetensors and, after it, its card NAME.json, both atomically. The
    card gets the hash and the net's arguments.

    Returns: the path of the weights.
    Raises: OSError if one cannot be written; both previous files stay.
    """
    place = place_of(folder)
    state = {
        k: (v.to(dtype) if v.is_floating_point() else v).detach().cpu().contiguous().clone()
        for k, v in net.state_dict().items()
    }
    new_weights, new_card = place / f"{name}.safetensors.new", place / f"{name}.json.new"
    try:
        write_safetensors(new_weights, state, {"format": "pt"})
        described = {
            "class": type(net).__name__,
            "arguments": net.config,
            "parameters": sum(p.numel() for p in net.parameters()),
            "stored_as": str(dtype).removeprefix("torch."),
        }
        write_json(
            new_card, {"name": name, "sha256": sha256(new_weights), "net": described, **card}
        )
    except BaseException:
        new_weights.unlink(missing_ok=True)
        raise
    os.replace(new_weights, place / f"{name}.safetensors")
    os.replace(new_card, place / f"{name}.json")
    return place / f"{name}.safetensors"


def place_of(folder: str | Path | None) -> Path:
    """The folder of weights: the shipped one, unless another is given."""
    return WEIGHTS if folder is None else Path(folder)
