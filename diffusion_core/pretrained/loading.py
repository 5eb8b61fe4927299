"""The weights and tables that ship with the package: verified by their hash, never
unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from diffusion_core._validate import UsageError
from diffusion_core.files import read_safetensors, sha256
from diffusion_core.networks import Classifier, UNet
from diffusion_core.pretrained.cards import place_of, read_card
from diffusion_core.schedules import NoiseSchedule, make_schedule

TABLES = Path(__file__).parents[1] / "tables"
_NETS = {"UNet": UNet, "Classifier": Classifier}


class Pretrained(NamedTuple):
    """net: in eval mode; schedule: the one it was trained with; card: where it comes
    from and how good it is."""

    net: UNet
    schedule: NoiseSchedule
    card: dict[str, Any]


def load_pretrained(name: str, folder: str | Path | None = None) -> Pretrained:
    """A trained noise predictor by name, with its schedule and its card. Works offline.

    Returns: (net, schedule, card).
    Raises: FileNotFoundError naming what is there; UsageError if the file is truncated,
        is not the one its card describes, or holds another kind of net.
    """
    net, card = load_net(name, folder)
    if not isinstance(net, UNet):
        raise UsageError(f"{name!r} is a {type(net).__name__}, not a noise predictor")
    if "schedule" not in card or "name" not in card.get("data", {}):
        raise UsageError(
            f"the card of {name!r} names no schedule or no data: the net cannot be used without; "
            "train it again"
        )
    return Pretrained(net, make_schedule(card["schedule"]), card)


def load_net(name: str, folder: str | Path | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Any shipped net, rebuilt from its card, with its weights.

    Raises: as load_pretrained.
    """
    place = place_of(folder)
    weights, card_path = place / f"{name}.safetensors", place / f"{name}.json"
    if not weights.exists() or not card_path.exists():
        there = sorted(
            p.stem for p in place.glob("*.json") if p.with_suffix(".safetensors").exists()
        )
        raise FileNotFoundError(
            f"no weights named {name!r} in {place}; there are {there}. `python -m diffusion_core "
            "train --help` says what can be trained"
        )
    card = read_card(card_path)
    found = sha256(weights)
    if found != card["sha256"]:
        raise UsageError(
            f"{weights} is not the file its card describes (SHA-256 {found[:12]}…, the card says "
            f"{card['sha256'][:12]}…); fetch it again"
        )
    tensors, _ = read_safetensors(weights)
    state = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    try:
        net = _NETS[card["net"]["class"]](**card["net"]["arguments"])
        net.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UsageError(f"{card_path} describes no net of these weights: {error!r}") from error
    return net.eval().requires_grad_(False), card


def load_table(name: str) -> dict[str, Any]:
    """A table of measurements that ships with the package, with the command that made
    it.

    Raises: FileNotFoundError naming what is there.
    """
    path = TABLES / f"{name}.json"
    if not path.exists():
        there = sorted(p.stem for p in TABLES.glob("*.json"))
        raise FileNotFoundError(f"no table named {name!r} in {TABLES}; there are {there}")
    return json.loads(path.read_text(encoding="utf-8"))
