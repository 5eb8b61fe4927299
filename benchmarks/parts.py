"""A long measurement in parts: each is a file in runs/, made once, so that a stopped run goes on."""

import argparse
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

RUNS = Path(__file__).resolve().parents[1] / "runs"


def stop_at(name: str, argv: list[str] | None = None) -> float:
    """When `python -m benchmarks.NAME` is to stop, as time.time() counts: after so many
    seconds as its one option says; without it, never."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long")
    return time.time() + parser.parse_args(argv).seconds


def make_parts(
    make: Callable[..., None], pieces: Iterable[tuple[Any, ...]], stop: float, processes: int = 1
) -> None:
    """make(path, …), which writes the file, for each piece (path, …) whose file is not there,
    in their order, until it is time to stop. Several processes start anew: they import make."""
    pieces = [piece for piece in dict.fromkeys(pieces) if not piece[0].exists()]
    one = partial(_make_in_time, make, stop)
    if processes == 1:
        for piece in pieces:
            one(piece)
    elif pieces:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            list(pool.map(one, pieces))


def _make_in_time(make: Callable[..., None], stop: float, piece: tuple[Any, ...]) -> None:
    if time.time() < stop:
        make(*piece)
        print(piece[0].stem, flush=True)
