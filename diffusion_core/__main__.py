"""python -m diffusion_core train | sample | evaluate — `--help` after each says more."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diffusion_core import commands

DATA_HELP = (
    "folder that holds torchvision's MNIST (default: $DIFFUSION_DATA, then "
    "~/.cache/diffusion_data, into which it is downloaded)"
)

TRAIN = """Train a recipe at full length and store the result with its card.

recipes:
{recipes}
  mnist_classifier  the judge: labels and features for `evaluate` (ten minutes on two cores,
                    in one piece, always on the CPU)

A run writes RUNS/NAME/checkpoint.safetensors every few hundred steps, atomically. If it is
stopped, in whatever way, the same command with --resume goes on from there and arrives at the
same weights as an uninterrupted run (bit for bit on a CPU). On several processes (the batch size
stays the global one): accelerate launch -m diffusion_core train NAME, or on two CPU processes
torchrun --nproc-per-node 2 -m diffusion_core train NAME --device cpu

examples:
  python -m diffusion_core train digits --steps 200
  DIFFUSION_DATA=~/data python -m diffusion_core train mnist --device cuda
  python -m diffusion_core train mnist --data ~/data --resume
"""

SAMPLE = """Draw images from a trained network and save them as one grid.

examples:
  python -m diffusion_core sample mnist --labels 0-9 --out grid.png
  python -m diffusion_core sample mnist --labels 3,1,4,1,5 --steps 50 --seed 7 --out pi.png
  python -m diffusion_core sample digits --weights runs/digits     (what `train digits` made)
"""

EVALUATE = """Measure a network trained on MNIST against real images; write a JSON table with
provenance.

For each of --seeds seeds: draws --samples training images, and paints as many with the same
labels along a strided chain. Then: agreement of the classifier with the label asked for; Fréchet
and kernel distance to the test images, of the painted images and of the training images (the
floor); distance to the nearest training images (nearest_Q%: the one below which Q % of the
painted images lie; nearest_test_Q%: the same of real test images); an estimate of the bound on
the bits per dimension of test images. A finished seed is kept: the same command goes on where it
was stopped. With --weights, the summary also goes into the card there.

example:
  python -m diffusion_core evaluate mnist --data ~/data --samples 2000 --steps 50
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line, as argparse sees it."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_core", description=__doc__, formatter_class=raw
    )
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, about, description, add_arguments in (
        ("train", "train a recipe", TRAIN.format(recipes=commands.recipe_list()), _add_train),
        ("sample", "draw images", SAMPLE, _add_sample),
        ("evaluate", "measure against real data", EVALUATE, _add_evaluate),
    ):
        add_arguments(
            subparsers.add_parser(name, help=about, description=description, formatter_class=raw)
        )
    return parser


def _add_train(train: argparse.ArgumentParser) -> None:
    train.add_argument("recipe", metavar="RECIPE", help="what to train (see above)")
    train.add_argument("--data", metavar="DIR", help=DATA_HELP)
    train.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    train.add_argument("--steps", type=int, help="instead of the recipe's number of steps")
    train.add_argument("--batch-size", type=int, help="instead of the recipe's global batch size")
    train.add_argument("--seed", type=int, help="instead of the recipe's seed")
    train.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        help="instead of the recipe's (auto: bf16 where the hardware multiplies it faster)",
    )
    train.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in the run's folder"
    )
    train.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where runs live (default: ./runs)",
    )
    train.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where weights and card go (default: the run's folder)",
    )


def _add_sample(sample: argparse.ArgumentParser) -> None:
    _add_generation(sample, steps=100)
    sample.add_argument(
        "--labels", default="0-9", help="such as 0-9 or 3,1,4 or none (default: 0-9)"
    )
    sample.add_argument(
        "--each", type=int, default=1, metavar="N", help="images of each label (default: 1)"
    )
    sample.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    sample.add_argument(
        "--out",
        type=Path,
        default=Path("grid.png"),
        metavar="FILE",
        help="the picture (default: grid.png)",
    )


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    _add_generation(evaluate, steps=50)
    evaluate.add_argument("--data", metavar="DIR", help=DATA_HELP)
    evaluate.add_argument(
        "--samples", type=int, default=2000, help="images for each seed (default: 2000)"
    )
    evaluate.add_argument(
        "--seeds", type=int, default=3, help="how many seeds: 0, 1, … (default: 3)"
    )
    evaluate.add_argument(
        "--out", type=Path, metavar="FILE", help="default: runs/NAME_evaluation.json"
    )


def _add_generation(command: argparse.ArgumentParser, steps: int) -> None:
    """What every command says that draws images from trained weights, in `steps` steps if nothing
    is said."""
    command.add_argument(
        "name", metavar="NAME", help="trained weights: mnist, or what --weights holds"
    )
    command.add_argument(
        "--steps",
        type=int,
        default=steps,
        help=f"steps of the strided chain, at most 1000 (default: {steps})",
    )
    command.add_argument("--device", default="cpu", help="cpu, cuda, … (default: cpu)")
    command.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="folder of weights (default: the ones that ship)",
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors of use are one line on standard error and exit status 2."""
    arguments = build_parser().parse_args(argv)
    try:
        getattr(commands, arguments.command)(arguments)
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
