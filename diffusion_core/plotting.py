"""Figures in one style, grids of images, a sampler's trajectory, animations, and the
source of a function."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusion_core.data import to_uint8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito 2008: told apart with every common kind of colour blindness. Their yellow is left
# out, for it is too light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def set_style() -> None:
    """The book's one figure style: colours that everybody can tell apart, a light card
    that also reads well in dark mode."""
    import matplotlib.pyplot as plt
    from cycler import cycler

    plt.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=COLOURS),
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.dpi": 100,
            "figure.figsize": (7.0, 3.2),
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "lines.linewidth": 2,
            "image.cmap": "gray",
        }
    )


def show_images(
    x: Tensor,
    *,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    scale: float = 0.75,
) -> Figure:
    """A grid of images.

    Shapes: x (B, C, H, W) in [-1, 1], C = 1 or 3; titles one an image, or one a column;
        rows one a row.
    Returns: the figure (also drawn by plt.show()).
    Raises: ValueError if the shape or a number of titles does not fit.
    """
    import matplotlib.pyplot as plt

    if x.ndim != 4 or x.shape[1] not in (1, 3) or len(x) == 0:
        raise ValueError(f"x {tuple(x.shape)}: expected (B, 1 or 3, H, W) with B >= 1")
    n = len(x)
    columns = min(n, columns or 8)
    count = -(-n // columns)
    if titles is not None and len(titles) not in (n, columns):
        raise ValueError(f"{len(titles)} titles for {n} images in {columns} columns")
    if rows is not None and len(rows) != count:
        raise ValueError(f"{len(rows)} row titles for {count} rows")
    pixels = to_uint8(x.detach().cpu()).permute(0, 2, 3, 1).squeeze(-1).numpy()
    figure, axes = plt.subplots(
        count,
        columns,
        figsize=(scale * columns + (0.8 if rows else 0), scale * count * (1.25 if titles else 1)),
        squeeze=False,
    )
    for i, axis in enumerate(axes.flat):
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        for spine in axis.spines.values():
            spine.set_visible(False)
        if i >= n:
            continue
        axis.imshow(pixels[i], vmin=0, vmax=255, interpolation="nearest")
        if titles is not None and i < len(titles):
            axis.set_title(titles[i], fontsize=9)
        if rows is not None and i % columns == 0:
            axis.set_ylabel(rows[i // columns], rotation=0, ha="right", va="center", fontsize=10)
    return figure


def show_trajectory(
    steps: Sequence[Tensor], titles: Sequence[str], *, scale: float = 0.75
) -> Figure:
    """Images on their way through time: one row an image, one column a moment.

    Shapes: steps, a list of (B, C, H, W); titles one a moment.
    Raises: ValueError if the numbers differ.
    """
    if len(steps) != len(titles):
        raise ValueError(f"{len(titles)} titles for {len(steps)} moments")
    stacked = torch.stack([s.detach().cpu() for s in steps], 1).flatten(0, 1)
    return show_images(stacked, columns=len(steps), titles=list(titles), scale=scale)


def animate(
    frames: Sequence[Tensor],
    *,
    columns: int = 8,
    scale: int = 3,
    milliseconds: int = 60,
    hold: int = 1500,
) -> Any:
    """An animation of grids of images, as something a notebook shows: a GIF, which
    loops and needs no script.

    Shapes: frames, a list of (B, C, H, W) in [-1, 1]; the last one is held for `hold`
        milliseconds.
    Returns: an IPython Image (its .data are the bytes of the file).
    Raises: ValueError for no frames.
    """
    from IPython.display import Image
    from PIL import Image as Pillow

    if not frames:
        raise ValueError("no frames to animate")
    pictures = [Pillow.fromarray(_grid(f, columns)) for f in frames]
    pictures = [
        p.resize((p.width * scale, p.height * scale), Pillow.Resampling.NEAREST) for p in pictures
    ]
    durations = [milliseconds] * (len(pictures) - 1) + [hold]
    file = io.BytesIO()
    pictures[0].save(
        file,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
    )
    return Image(data=file.getvalue(), format="gif")


def _grid(x: Tensor, columns: int, gap: int = 1):
    """One (H', W') or (H', W', 3) uint8 array from (B, C, H, W)."""
    from torchvision.utils import make_grid

    grid = make_grid(to_uint8(x.detach().cpu()), nrow=columns, padding=gap)
    return grid.permute(1, 2, 0).numpy() if x.shape[1] == 3 else grid[0].numpy()


def show_source(function: Callable) -> Any:
    """The source of a function or class as it is shipped, docstring included, highlighted.

    Returns: IPython Code.
    Raises: TypeError for what has no Python source.
    """
    from IPython.display import Code

    if not isinstance(function, FunctionType | type):
        raise TypeError(f"{function!r} has no Python source; give a function or a class")
    return Code(inspect.getsource(inspect.unwrap(function)), language="python")
