"""Where a result comes from, for the cards and tables that the commands write."""

from __future__ import annotations

import hashlib
import platform
import time
from typing import Any

import torch

from diffusion_core.data import Images


def hardware(device: str | None = None) -> str:
    """The device's name, in words."""
    kind = device and torch.device(device).type
    if kind in (None, "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    if kind in (None, "mps") and torch.backends.mps.is_available():
        return f"Apple GPU ({platform.machine()})"
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}, {threads} thread{'' if threads == 1 else 's'})"


def provenance(command: str, device: str | None) -> dict[str, Any]:
    """Command, date, hardware and versions, for a card."""
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(device),
        "torch": torch.__version__.split("+")[0],
    }


def data_card(name: str, data: Images) -> dict[str, Any]:
    """Name, size and hash of the training images."""
    return {
        "name": name,
        "images": len(data.pixels),
        "sha256": hashlib.sha256(data.pixels.numpy().tobytes()).hexdigest(),
    }


def command_line(verb: str, name: str, options: dict[str, Any]) -> str:
    """The command as it is typed; options that are None are left out."""
    flags = "".join(
        f" --{key.replace('_', '-')} {value}" for key, value in options.items() if value is not None
    )
    return f"python -m diffusion_core {verb} {name}{flags}"
