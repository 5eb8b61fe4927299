"""The weights that ship with the package: saved with a card, verified by their hash,
never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_core.checkpoints import read_safetensors, save_safely
from diffusion_core.classifier import Classifier
from diffusion_core.metrics import Moments
from diffusion_core.recipes import make_schedule
from diffusion_core.schedules import NoiseSchedule
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
    if "schedule" not in card or "name" not in card.get("data", {}):
        raise ValueError(
            f"the card of {name!r} names no schedule or no data: the net cannot be used without; "
            "train it again"
        )
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
    path = _folder(folder) / f"{name}_moments.safetensors"
    tensors, _ = read_safetensors(path)
    if sha256(path) != card.get("moments_sha256"):
        raise ValueError(
            f"{path} is not the file that the card of {name!r} describes; fetch it again"
        )
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
        there = sorted(
            p.stem for p in place.glob("*.json") if p.with_suffix(".safetensors").exists()
        )
        raise FileNotFoundError(
            f"no weights named {name!r} in {place}; there are {there}. `python -m diffusion_core "
            "train --help` says what can be trained"
        )
    card = _read_card(card_path)
    found = sha256(weights)
    if found != card["sha256"]:
        raise ValueError(
            f"{weights} is not the file its card describes (SHA-256 {found[:12]}…, the card says "
            f"{card['sha256'][:12]}…); fetch it again"
        )
    tensors, _ = read_safetensors(weights)
    state = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    try:
        net = _NETS[card["net"]["class"]](**card["net"]["arguments"])
        net.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{card_path} describes no net of these weights: {error!r}") from error
    return net.eval().requires_grad_(False), card


def _read_card(path: Path) -> dict[str, Any]:
    """Raises: ValueError if it is no card."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch or train it again") from error
    if not isinstance(card, dict) or not {"sha256", "net"} <= card.keys():
        raise ValueError(f"{path} is no card: it holds no sha256 and no net")
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
    place = _folder(folder)
    state = {
        k: (v.to(dtype) if v.is_floating_point() else v).detach().cpu().contiguous().clone()
        for k, v in net.state_dict().items()
    }
    new_weights, new_card = place / f"{name}.safetensors.new", place / f"{name}.json.new"
    try:
        save_safely(state, new_weights, {"format": "pt"})
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


def save_moments(name: str, found: dict[str, Moments], folder: str | Path | None = None) -> Path:
    """Store a classifier's feature moments beside it, as NAME_moments.safetensors. Its
    card must hold the file's hash as "moments_sha256".

    Returns: the path of the file.
    Raises: OSError if it cannot be written; the previous file stays.
    """
    tensors: dict[str, Tensor] = {}
    for split, m in found.items():
        tensors |= {f"{split}.mean": m.mean, f"{split}.cov": m.cov, f"{split}.n": torch.tensor(m.n)}
    path = _folder(folder) / f"{name}_moments.safetensors"
    save_safely(tensors, path, {"format": "pt"})
    return path


def write_json(path: str | Path, value: dict[str, Any]) -> None:
    """JSON, atomically: a temporary file, flushed to the disk, then a rename.

    Raises: OSError if it cannot be written; the previous file stays.
    """
    path = Path(path)
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written ({error}); the previous file is kept"
        ) from error


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _folder(folder: str | Path | None) -> Path:
    return WEIGHTS if folder is None else Path(folder)
