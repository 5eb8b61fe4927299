"""A folder of images with captions, as Hugging Face's `imagefolder` wants it: pictures, and a
file `metadata.jsonl` with one line each, {"file_name": "0001.png", "text": "a red circle"}."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from diffusion_core._validate import UsageError, check_whole
from diffusion_core.files import write_bytes

METADATA = "metadata.jsonl"
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_LISTED = 5  # faults that a message names


class Captioned(NamedTuple):
    """Images and what they show: pixels (N, 3, H, W) uint8, and N captions."""

    pixels: Tensor
    captions: list[str]


def load_captioned_folder(folder: str | Path, size: int = 32) -> Captioned:
    """The images of a folder, in the order of its `metadata.jsonl`, cut to the square in
    their middle, resized, and turned into colours: transparent places become white, and the
    camera's rotation is carried out.

    Returns: pixels (N, 3, size, size) uint8, and the captions.
    Raises: UsageError, naming all that is at fault: a line that cannot be read, a caption
        that is missing or empty, a file that is missing or broken, an image without a line.
        FileNotFoundError without the folder or its `metadata.jsonl`.
    """
    check_whole("size", size, 1)
    folder = Path(folder)
    captions = _read_captions(folder)
    uncaptioned = sorted(set(_images_in(folder)) - set(captions))
    _stop(folder, [f"{name} has no line in {METADATA}" for name in uncaptioned])
    pixels, faults = [], []
    for name in captions:
        try:
            pixels.append(_read_image(folder / name, size))
        except Exception as error:  # a broken file can raise anything
            reason = str(error).split("\n")[0]
            faults.append(f"{name} cannot be read ({type(error).__name__}: {reason})")
    _stop(folder, faults)
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return Captioned(stacked, list(captions.values()))


def save_captioned_folder(folder: str | Path, pixels: Tensor, captions: Sequence[str]) -> None:
    """Images as PNG files 0000.png, 0001.png, …, and their captions in `metadata.jsonl`,
    which is written last. Files of these names are overwritten.

    Shapes: pixels (N, 3, H, W) uint8; N captions.
    Raises: UsageError unless they fit together, or if a caption is empty; FileExistsError if
        the folder holds other images: they would have no caption; OSError as write_bytes.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise UsageError(
            f"pixels {tuple(pixels.shape)} {pixels.dtype} must be (N, 3, H, W) torch.uint8"
        )
    if len(pixels) != len(captions) or not len(pixels):
        raise UsageError(f"{len(pixels)} images and {len(captions)} captions; give as many, some")
    empty = [i for i, caption in enumerate(captions) if not caption.strip()]
    if empty:
        raise UsageError(f"the captions {empty[:_LISTED]} are empty; say what the images show")
    folder = Path(folder)
    names = [f"{i:04d}.png" for i in range(len(pixels))]
    others = sorted(set(_images_in(folder)) - set(names))
    if others:
        raise FileExistsError(f"{folder} holds other images ({others[0]}); choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, pixels.permute(0, 2, 3, 1).cpu().numpy()):
        Image.fromarray(image).save(folder / name)
    lines = [
        json.dumps({"file_name": name, "text": caption}, ensure_ascii=False) + "\n"
        for name, caption in zip(names, captions)
    ]
    write_bytes(folder / METADATA, "".join(lines).encode())


def _read_captions(folder: Path) -> dict[str, str]:
    """{file name: caption}, each line checked."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; name one that holds {METADATA}")
    path = folder / METADATA
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; write it, one line an image: "
            '{"file_name": "0001.png", "text": "a red circle"}'
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8 ({error}); save it as UTF-8") from error
    captions: dict[str, str] = {}
    faults = []
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            name, caption = _parse(line)
            if name in captions:
                raise ValueError(f"{name} has a line already")
            captions[name] = caption
            if not (folder / name).is_file():
                raise ValueError(f"{name} does not exist")
        except ValueError as error:
            faults.append(f"line {i} of {METADATA}: {error}")
    _stop(folder, faults)
    if not captions:
        raise UsageError(f"{path} names no image")
    return captions


def _parse(line: str) -> tuple[str, str]:
    """The file's name and the caption of a line; ValueError saying what is wrong with it."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error.msg} at character {error.colno})") from error
    if not isinstance(row, dict):
        raise ValueError('no {"file_name": …, "text": …}')
    for key in ("file_name", "text"):
        if key not in row:
            raise ValueError(f'has no "{key}", only {", ".join(row) or "nothing"}')
        if not isinstance(row[key], str) or not row[key].strip():
            raise ValueError(f'"{key}" is {row[key]!r}, expected some text')
    name = Path(row["file_name"])
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{name} lies outside the folder")
    return name.as_posix(), row["text"].strip()


def _images_in(folder: Path) -> list[str]:
    """The images of a folder and those below it, by the ends of their names."""
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in _IMAGES and path.is_file() and not path.name.startswith(".")
    ]


def _read_image(path: Path, size: int) -> np.ndarray:
    """An image file as (size, size, 3) uint8."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode == "F":
            raise ValueError("its pixels are real numbers; save it with 8 or 16 bits")
        if image.mode.startswith("I"):  # 16 bits a pixel
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
        return np.asarray(square)


def _stop(folder: Path, faults: Sequence[str]) -> None:
    """Raise UsageError if there are faults, the first of them listed."""
    if faults:
        more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise UsageError(f"{folder}: {'; '.join(faults[:_LISTED])}{more}")
