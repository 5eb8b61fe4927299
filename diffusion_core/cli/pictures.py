"""Pictures as files: a grid of images, and the kind of file that its name asks for."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffusion_core._validate import UsageError
from diffusion_core.data import to_uint8


def grid_of(x: Tensor, columns: int, scale: int = 4) -> Image.Image:
    """Images (N, C, H, W), row by row, as one picture, each pixel scale by scale; N is a multiple
    of the columns."""
    n, c, h, w = x.shape
    pixels = to_uint8(x).reshape(n // columns, columns, c, h, w).permute(0, 3, 1, 4, 2)
    grid = pixels.reshape(n // columns * h, columns * w, c).numpy()
    image = Image.fromarray(grid.squeeze(-1) if c == 1 else grid)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def kind_of(out: Path, channels: int) -> str:
    """Pillow's name for the kind of file, which is tried out with one pixel.

    Raises: UsageError if Pillow does not know it, or only reads it, or not with this many channels.
    """
    kind = Image.registered_extensions().get(out.suffix.lower())
    if kind is None:
        raise UsageError(f"--out {out}: {out.suffix!r} is no kind of image file; write grid.png")
    try:
        encoded(grid_of(torch.zeros(1, channels, 8, 8), 1), kind)
    except Exception as error:  # each kind of file has errors of its own
        raise UsageError(
            f"--out {out}: Pillow cannot write this kind of file ({kind}); write grid.png"
        ) from error
    return kind


def encoded(image: Image.Image, kind: str) -> bytes:
    """The bytes of the file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()
