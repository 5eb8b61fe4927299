"""What the commands share: options, and the checks that come before any work is done."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from diffusion_core._validate import UsageError, check_device, check_whole
from diffusion_core.pretrained import (
    Pretrained,
    Sampler,
    check_sampling,
    load_pretrained,
)
from diffusion_core.training import CHECKPOINT, steps_done


def add_command(
    commands: argparse._SubParsersAction,
    function: Callable[..., None],
    about: str,
    description: str,
) -> argparse.ArgumentParser:
    """A command that runs this function, under its name; its options become keyword arguments."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        function.__name__, help=about, description=description, formatter_class=raw
    )
    parser.set_defaults(run=function)
    return parser


def add_data(command: argparse.ArgumentParser) -> None:
    """Where a command takes the images from."""
    command.add_argument(
        "--data",
        metavar="DIR",
        help="folder that holds torchvision's MNIST (default: $DIFFUSION_DATA, then "
        "~/.cache/diffusion_data, into which it is downloaded)",
    )


def add_generation(command: argparse.ArgumentParser, steps: int) -> None:
    """What every command says that draws images from trained weights, in `steps` steps if nothing
    is said."""
    add = command.add_argument
    add("name", metavar="NAME", help="trained weights: mnist, or what --weights holds")
    add(
        "--steps",
        type=int,
        default=steps,
        help=f"steps of the strided chain, at most 1000 (default: {steps})",
    )
    add(
        "--sampler",
        choices=get_args(Sampler),
        default="ddpm",
        help="ddpm draws noise in every step, ddim as much as --eta says (default: ddpm)",
    )
    add(
        "--eta", type=float, help="share of noise in a step of ddim: 0 none, 1 as ddpm (default: 0)"
    )
    add(
        "--guidance",
        type=float,
        metavar="SCALE",
        help="classifier-free guidance: 1 follows the labels as trained, more exaggerates them, "
        "0 ignores them (default: none, the same as 1 at half the cost)",
    )
    add("--device", default="cpu", help="cpu, cuda, … (default: cpu)")
    add(
        "--weights",
        type=Path,
        metavar="DIR",
        help="folder of weights (default: the ones that ship)",
    )


def load_for_sampling(
    name: str,
    weights: Path | None,
    device: str,
    steps: int,
    sampler: Sampler,
    eta: float | None,
    guidance: float | None,
) -> Pretrained:
    """The trained weights, once the options of sampling fit them.

    Raises: UsageError; FileNotFoundError; as load_pretrained.
    """
    check_device(device)
    check_whole("--steps", steps, 1)
    if weights is not None and not (weights / f"{name}.safetensors").exists():
        _check_not_stopped(weights / CHECKPOINT)
    model = load_pretrained(name, weights)
    if steps > model.schedule.T:
        raise UsageError(
            f"--steps = {steps} is more than the {model.schedule.T} of the whole chain"
        )
    check_sampling(model, steps, sampler=sampler, eta=eta, guidance_scale=guidance)
    return model


def _check_not_stopped(checkpoint: Path) -> None:
    if checkpoint.exists():
        raise UsageError(
            f"{checkpoint.parent} holds a run at step {steps_done(checkpoint)}, but no weights: "
            "repeat its train command with --resume to finish it, or name the folder of its --out"
        )


def check_file(option: str, path: Path) -> None:
    """Raise UsageError unless a file can be written at this path."""
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder; name a file in it")
    check_folder(option, path.parent)


def check_folder(option: str, path: Path) -> None:
    """Raise UsageError unless files can be written into this folder, which need not exist yet."""
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UsageError(f"{option} {path}: {there} is in the way, and no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: this user cannot write into {there}")
