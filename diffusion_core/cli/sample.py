"""`python -m diffusion_core sample NAME`: images from trained weights, as one grid."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from torch import Tensor

from diffusion_core._validate import UsageError, check_whole
from diffusion_core.cli.options import (
    add_command,
    add_generation,
    check_file,
    load_for_sampling,
)
from diffusion_core.cli.pictures import encoded, grid_of, kind_of
from diffusion_core.files import write_bytes
from diffusion_core.pretrained import Sampler, generate

_HELP = """Draw images from a trained network and save them as one grid.

examples:
  python -m diffusion_core sample mnist --labels 0-9 --out grid.png
  python -m diffusion_core sample mnist --labels 3,1,4,1,5 --steps 50 --seed 7 --out pi.png
  python -m diffusion_core sample mnist --sampler ddim --steps 20 --guidance 2
  python -m diffusion_core sample digits --weights runs/digits     (what `train digits` made)
"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add `sample` and its options to the command line."""
    parser = add_command(commands, sample, "draw images", _HELP)
    add = parser.add_argument
    add_generation(parser, steps=100)
    add("--labels", default="0-9", help="such as 0-9 or 3,1,4 or none (default: 0-9)")
    add("--each", type=int, default=1, metavar="N", help="images of each label (default: 1)")
    add("--seed", type=int, default=0, help="of the noise (default: 0)")
    add(
        "--out",
        type=Path,
        default=Path("grid.png"),
        metavar="FILE",
        help="the picture (default: grid.png)",
    )


def sample(
    name: str,
    *,
    labels: str = "0-9",
    each: int = 1,
    steps: int = 100,
    sampler: Sampler = "ddpm",
    eta: float | None = None,
    guidance: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    weights: Path | None = None,
    out: Path = Path("grid.png"),
) -> None:
    """Draw `each` images of each label, a column a label, and save them as one picture.

    Raises: UsageError; OSError.
    """
    check_whole("--each", each, 1)
    check_file("--out", out)
    model = load_for_sampling(name, weights, device, steps, sampler, eta, guidance)
    wanted = parse_labels(labels, model.net.classes)
    kind = kind_of(out, model.net.channels)
    columns = 10 if wanted is None else len(wanted)
    x = generate(
        model,
        None if wanted is None else wanted.repeat(each),
        columns * each,
        steps,
        seed,
        device,
        sampler=sampler,
        eta=eta,
        guidance_scale=guidance,
    )
    write_bytes(out, encoded(grid_of(x, columns), kind))
    print(f"{len(x)} images: {out}")


def parse_labels(text: str, classes: int | None) -> Tensor | None:
    """ "0-9", "3,1,4" or "none" into labels.

    Raises: UsageError if it cannot be read or a label is out of range.
    """
    if text == "none":
        return None
    words = text.split(",")
    parts = [found for word in words if (found := re.fullmatch(r" *(\d+)(?:-(\d+))? *", word))]
    if len(parts) < len(words):
        raise UsageError(f"--labels {text!r} cannot be read; write 0-9 or 3,1,4 or none")
    ends = [(int(part[1]), int(part[2] or part[1])) for part in parts]
    if any(low > high for low, high in ends):
        raise UsageError(f"--labels {text!r}: a range goes from the smaller label to the larger")
    if classes is None or not all(high < classes for _, high in ends):
        known = (
            "has no labels: use none" if classes is None else f"knows the labels 0-{classes - 1}"
        )
        raise UsageError(f"--labels {text!r}: this network {known}")
    return torch.tensor([label for low, high in ends for label in range(low, high + 1)])
