"""The weights that ship with the package: saved with a card, verified by their hash,
never unpickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_core.classifier import Classifier
from diffusion_core.metrics import Moments
from diffusion_core.recipes import make_schedule
from diffusion_core.schedules import NoiseSchedule
from diffusion_core.training import read_safetensors, save_safely
from diffusion_core.unet import UNet

WEIGHTS = Path(__file__).parent / "weights"
TABLES = Path(__file__).parent / "tables"
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
    Raises: FileNotFoundError naming what is there; ValueError if the file is truncated,
        is not the one its card describes, or holds another kind of net.
    """
    net, card = load_net(name, folder)
    if not isinstance(net, UNet):
        raise ValueError(f"{name!r} is a {type(net).__name__}, not a noise predictor")
    return Pretrained(net, make_schedule(card["schedule"]), card)


def load_classifier(
    name: str = "mnist_classifier", folder: str | Path | None = None
) -> tuple[Classifier, dict[str, Moments], dict[str, Any]]:
    """The judge: classifier, the moments of its features over the images named in its
    card ("train", "test"), and the card.

    Raises: as load_pretrained.
    """
    net, card = load_net(name, folder)
    if not isinstance(net, Classifier):
        raise ValueError(f"{name!r} is a {type(net).__name__}, not a classifier")
    tensors, _ = read_safetensors(_folder(folder) / f"{name}_moments.safetensors")
    found = {
        split: Moments(
            tensors[f"{split}.mean"], tensors[f"{split}.cov"], int(tensors[f"{split}.n"])
        )
        for split in ("train", "test")
    }
    return net, found, card


def load_net(name: str, folder: str | Path | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Any shipped net, rebuilt from its card, with its weights.

    Raises: as load_pretrained.
    """
    place = _folder(folder)
    weights, card_path = place / f"{name}.safetensors", place / f"{name}.json"
    if not weights.exists() or not card_path.exists():
        there = sorted(p.stem for p in place.glob("*.json"))
        raise FileNotFoundError(
            f"no weights named {name!r} in {place}; there are {there}. Train it: python -m "
            f"diffusion_core train {name}"
        )
    card = json.loads(card_path.read_text())
    found = sha256(weights)
    if found != card["sha256"]:
        raise ValueError(
            f"{weights} is not the file its card describes (SHA-256 {found[:12]}…, the card says "
            f"{card['sha256'][:12]}…); fetch it again"
        )
    tensors, _ = read_safetensors(weights)
    net = _NETS[card["net"]["class"]](**card["net"]["arguments"])
    net.load_state_dict(
        {
            key: value.float() if value.is_floating_point() else value
            for key, value in tensors.items()
        }
    )
    return net.eval().requires_grad_(False), card


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
    Raises: OSError if one cannot be written.
    """
    place = _folder(folder)
    state = {
        k: (v.to(dtype) if v.is_floating_point() else v).detach().cpu().contiguous().clone()
        for k, v in net.state_dict().items()
    }
    weights = place / f"{name}.safetensors"
    save_safely(state, weights, {"format": "pt"})
    parameters = sum(p.numel() for p in net.parameters())
    write_json(
        place / f"{name}.json",
        {
            "name": name,
            "sha256": sha256(weights),
            "net": {
                "class": type(net).__name__,
                "arguments": net.config,
                "parameters": parameters,
                "stored_as": str(dtype).removeprefix("torch."),
            },
            **card,
        },
    )
    return weights


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


def save_moments(name: str, found: dict[str, Moments], folder: str | Path | None = None) -> None:
    """Store a classifier's feature moments beside it, as NAME_moments.safetensors."""
    tensors: dict[str, Tensor] = {}
    for split, m in found.items():
        tensors |= {f"{split}.mean": m.mean, f"{split}.cov": m.cov, f"{split}.n": torch.tensor(m.n)}
    save_safely(tensors, _folder(folder) / f"{name}_moments.safetensors", {"format": "pt"})


def write_json(path: str | Path, value: dict[str, Any]) -> None:
    """JSON, atomically: a temporary file, then a rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _folder(folder: str | Path | None) -> Path:
    return WEIGHTS if folder is None else Path(folder)
