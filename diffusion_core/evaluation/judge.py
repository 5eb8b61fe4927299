"""The judge of images: a shipped classifier, with the moments of its features over real
images, from which distances are measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_core._validate import UsageError
from diffusion_core.evaluation.metrics import Moments
from diffusion_core.files import read_safetensors, sha256, write_safetensors
from diffusion_core.networks import Classifier
from diffusion_core.pretrained import load_net, place_of


def load_classifier(
    name: str = "mnist_classifier", folder: str | Path | None = None
) -> tuple[Classifier, dict[str, Moments], dict[str, Any]]:
    """The judge: classifier, the moments of its features over the images named in its
    card ("train", "test"), and the card.

    Raises: as load_pretrained.
    """
    net, card = load_net(name, folder)
    if not isinstance(net, Classifier):
        raise UsageError(f"{name!r} is a {type(net).__name__}, not a classifier")
    path = place_of(folder) / f"{name}_moments.safetensors"
    tensors, _ = read_safetensors(path)
    if sha256(path) != card.get("moments_sha256"):
        raise UsageError(
            f"{path} is not the file that the card of {name!r} describes; fetch it again"
        )
    found = {
        split: Moments(
            tensors[f"{split}.mean"], tensors[f"{split}.cov"], int(tensors[f"{split}.n"])
        )
        for split in ("train", "test")
    }
    return net, found, card


def save_moments(name: str, found: dict[str, Moments], folder: str | Path | None = None) -> Path:
    """Store a classifier's feature moments beside it, as NAME_moments.safetensors. Its
    card must hold the file's hash as "moments_sha256".

    Returns: the path of the file.
    Raises: OSError if it cannot be written; the previous file stays.
    """
    tensors: dict[str, Tensor] = {}
    for split, m in found.items():
        tensors |= {f"{split}.mean": m.mean, f"{split}.cov": m.cov, f"{split}.n": torch.tensor(m.n)}
    path = place_of(folder) / f"{name}_moments.safetensors"
    write_safetensors(path, tensors, {"format": "pt"})
    return path
