"""The command line, one file a command: `python -m diffusion_core train | sample | evaluate |
paint`."""

from __future__ import annotations

import argparse

from diffusion_core.cli import evaluate, paint, sample, train


def build_parser() -> argparse.ArgumentParser:
    """The command line, as argparse sees it."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_core",
        description="Train, sample and evaluate diffusion models, or paint what a sentence says: "
        "--help after each says more.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (train, sample, evaluate, paint):
        module.add_to(commands)
    return parser


def run(argv: list[str] | None = None) -> None:
    """Run one command: its options are the keyword arguments of its function.

    Raises: UsageError or OSError for what the user can mend, FloatingPointError if training
        diverged; anything else is a bug.
    """
    options = vars(build_parser().parse_args(argv))
    del options["command"]
    options.pop("run")(**options)
