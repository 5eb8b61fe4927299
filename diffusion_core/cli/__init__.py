"""The command line, one file a command: `python -m diffusion_core train | sample | evaluate`."""

from __future__ import annotations

import argparse

from diffusion_core.cli import evaluate, sample, train

DESCRIPTION = "python -m diffusion_core train | sample | evaluate: `--help` after each says more."
COMMANDS = {
    "train": (train.train, "train a recipe", train),
    "sample": (sample.sample, "draw images", sample),
    "evaluate": (evaluate.evaluate, "measure against real data", evaluate),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line, as argparse sees it."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_core", description=DESCRIPTION, formatter_class=raw
    )
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, (_, about, module) in COMMANDS.items():
        module.add_arguments(
            subparsers.add_parser(name, help=about, description=module.HELP, formatter_class=raw)
        )
    return parser


def run(argv: list[str] | None = None) -> None:
    """Run one command: its options are the keyword arguments of its function.

    Raises: UsageError or OSError for what the user can mend, FloatingPointError if training
        diverged; anything else is a bug.
    """
    options = vars(build_parser().parse_args(argv))
    command, *_ = COMMANDS[options.pop("command")]
    command(**options)
