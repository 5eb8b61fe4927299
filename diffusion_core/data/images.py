"""Images: as uint8 where they are stored, as floats in [-1, 1] where they are used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from diffusion_core._validate import UsageError

Name = Literal["digits", "mnist", "fashion_mnist", "cifar10"]
Split = Literal["train", "test"]
SIZES: dict[Name, int] = {
    "digits": 8,
    "mnist": 28,
    "fashion_mnist": 28,
    "cifar10": 32,
}  # pixels, each side
_TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}
_CACHE = "~/.cache/diffusion_data"  # in words
_FOLDER = _TORCHVISION | {"cifar10": "cifar-10-batches-py"}  # that torchvision keeps it in


class Images(NamedTuple):
    """A data set: pixels (N, C, H, W) uint8, labels (N,) int64."""

    pixels: Tensor
    labels: Tensor

    @property
    def x(self) -> Tensor:
        """The images as the models see them: (N, C, H, W) float32 in [-1, 1]."""
        return from_uint8(self.pixels)


def from_uint8(pixels: Tensor) -> Tensor:
    """Stored pixels 0..255 to the models' range.

    Equation: x = pixels / 127.5 - 1 (DDPM sec. 3.3: integers in 0..255 scaled linearly
        to [-1, 1]).
    Shapes: any; the same.
    Returns: float32 in [-1, 1].
    Raises: TypeError unless uint8.
    """
    if pixels.dtype != torch.uint8:
        raise TypeError(f"pixels have dtype {pixels.dtype}, expected uint8 in 0..255")
    return pixels.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """The one way back from [-1, 1] to pixels that can be shown or stored; values
    outside are clipped, the rest rounded.

    Equation: pixels = round(127.5 (x + 1)).
    Shapes: any; the same.
    Returns: uint8.
    Raises: UsageError if a value is NaN.
    """
    if bool(x.isnan().any()):
        raise UsageError("the images hold NaN: the network or the sampler diverged")
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def load_images(name: Name, split: Split = "train", folder: str | Path | None = None) -> Images:
    """A data set by name: from `folder`, if one is given; else from $DIFFUSION_DATA or
    ~/.cache/diffusion_data, whichever holds it first, or downloaded into the last one.

    `digits` (1,797 real handwritten digits, 8x8) ships inside scikit-learn and needs no
    network; its test split is every sixth image from the first (300), its train split
    the rest (1,497).

    Shapes: pixels (N, C, H, W) uint8; labels (N,) int64.
    Raises: UsageError for an unknown name or split, or damaged files;
        FileNotFoundError, saying where it looked and what to do, if the files are not
        in the given folder, or are nowhere and cannot be downloaded.
    """
    if name not in get_args(Name) or split not in get_args(Split):
        raise UsageError(
            f"name = {name!r}, split = {split!r}: choose from {get_args(Name)} and "
            f"{get_args(Split)}"
        )
    return _digits(split) if name == "digits" else _from_torchvision(name, split, folder)


def _digits(split: Split) -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    is_test = torch.arange(len(pixels)) % 6 == 0
    keep = is_test if split == "test" else ~is_test
    return Images(pixels[keep], torch.from_numpy(digits.target).long()[keep])


def _from_torchvision(name: Name, split: Split, folder: str | Path | None) -> Images:
    if folder:
        found = _read(name, split, Path(folder))
        if found is None:
            raise FileNotFoundError(
                f"{name} was not found in {folder}: it must hold torchvision's {_FOLDER[name]} "
                f"folder. Without a folder it is looked for in $DIFFUSION_DATA and {_CACHE}, and "
                "downloaded"
            )
        return found
    named = os.environ.get("DIFFUSION_DATA")
    if named and (found := _read(name, split, Path(named))):
        return found
    cache = _cache(name, named)
    return _read(name, split, cache) or _download(name, split, cache, named)


def _cache(name: Name, named: str | None) -> Path:
    """The folder that downloads go to; a user without a home has none."""
    try:
        return Path.home() / ".cache" / "diffusion_data"
    except RuntimeError as error:
        looked = f"in {named}, and " if named else ""
        raise FileNotFoundError(
            f"{name} was not found {looked}in {_CACHE}, for this user has no home folder; set "
            f"DIFFUSION_DATA to the folder that holds torchvision's {_FOLDER[name]} folder"
        ) from error


def _read(name: Name, split: Split, place: Path) -> Images | None:
    """The data in this folder; None if it is not there.

    Raises: UsageError if it is there, but damaged.
    """
    try:
        return _load(name, split, place)
    except PermissionError:
        raise  # it says which file
    except Exception as error:
        # of files that are there torchvision says "not found or corrupted", if it keeps their sums
        corrupted = "corrupted" in str(error) and (place / _FOLDER[name]).exists()
        if "Dataset not found" in str(error) and not corrupted:
            return None
        raise UsageError(_damaged(name, place, error)) from error


def _download(name: Name, split: Split, cache: Path, named: str | None) -> Images:
    try:
        return _load(name, split, cache, download=True)
    except Exception as error:
        looked = ", ".join(str(place) for place in (named, cache) if place)
        raise FileNotFoundError(
            f"{name} was not found (looked in {looked}) and could not be downloaded "
            f"({type(error).__name__}). "
            f"Put torchvision's {_FOLDER[name]} folder into one of these, or set "
            "DIFFUSION_DATA to the folder that holds it."
        ) from error


def _damaged(name: Name, place: Path, error: Exception) -> str:
    reason = str(error).split("\n")[0]
    return (
        f"the files of {name} in {place} are damaged ({type(error).__name__}: {reason}); "
        f"delete {place / _FOLDER[name]} and put or download it again"
    )


def _load(name: Name, split: Split, place: Path, download: bool = False) -> Images:
    import torchvision

    of_torchvision = getattr(torchvision.datasets, _TORCHVISION[name])
    dataset = of_torchvision(root=place, train=split == "train", download=download)
    pixels = torch.as_tensor(np.asarray(dataset.data))
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(dataset.targets).long()
    if labels.shape != (len(pixels),):
        raise ValueError(f"{len(pixels)} images, but labels of shape {tuple(labels.shape)}")
    return Images(pixels, labels)
