"""How often the pocket Stable Diffusion paints what its prompt says.

Prompts are the captions of scenes that the training never drew; the judge of
evaluation/prompts.py reads the pictures. Three parts, each picture from a generator of its own:

  guidance   guidance scales, 25 steps of DDIM, on a set of prompts of its own: the best one is used below
  accuracy   one thing and two, combinations that the training showed and such as it never did: N prompts each, three seeds of noise
  scheduler  DDIM, DDPM, DPM-Solver++ and Euler with 5, 10 and 25 steps, on the prompts of the guidance part

Written to diffusion_core/tables/pocket.json; parts of 50 pictures are kept in runs/pocket_table,
so that a stopped run goes on. One process a core, one thread each.

    python -m benchmarks.pocket_table
    … --seconds 150    (stops after so long; the table holds the rows that are whole)
    … --prompts 100    (instead of 500)
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.painting import paint_scenes
from benchmarks.parts import RUNS, make_parts
from diffusion_core.cli.provenance import provenance
from diffusion_core.data import Scene
from diffusion_core.evaluation import Verdict, estimate
from diffusion_core.evaluation.prompts import LEAST_IOU
from diffusion_core.files import sha256, write_json
from diffusion_core.pretrained import TABLES
from diffusion_core.text_to_image import POCKET, load_pocket, scenes_of

FILE = TABLES / "pocket.json"
PARTS = RUNS / "pocket_table"
PROMPTS, SMALL, PART = 500, 100, 50
SCENES, SMALL_SCENES = 101, 102  # seeds of scenes; the training's is 1
SEEDS = (0, 1, 2)
STEPS = 25
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
SCHEDULERS = ("ddim", "ddpm", "dpm++", "euler")
SHARES = Verdict._fields[:-1]  # what is right or wrong


@dataclasses.dataclass(frozen=True)
class Row:
    """One entry of the table: n prompts of so many things, each painted once. held: whether the
    combinations are those kept out of training, None for any; scenes: the seed of the prompts."""

    things: int
    held: bool | None
    gamma: float
    steps: int
    scheduler: str
    seed: int
    scenes: int
    n: int

    @property
    def name(self) -> str:
        return "_".join(str(value) for value in dataclasses.astuple(self)[:-1])

    @property
    def evaluations(self) -> int:
        """How often the network is asked for a picture: twice a step with guidance."""
        return self.steps * (2 if self.gamma > 1 else 1)

    def parts(self, folder: Path) -> dict[Path, range]:
        """The file of each part, and the pictures that are painted together."""
        starts = range(0, self.n, PART)
        chosen = [range(start, min(start + PART, self.n)) for start in starts]
        return {folder / f"{self.name}_{some.start}_{some.stop}.json": some for some in chosen}


def guidance_rows(n: int) -> list[Row]:
    return [
        Row(things, None, gamma, STEPS, "ddim", 0, SMALL_SCENES, n)
        for gamma in SCALES
        for things in (1, 2)
    ]


def accuracy_rows(n: int, gamma: float) -> list[Row]:
    return [
        Row(things, held, gamma, STEPS, "ddim", seed, SCENES, n)
        for seed in SEEDS
        for things in (1, 2)
        for held in (False, True)
    ]


def scheduler_rows(n: int, gamma: float) -> list[Row]:
    return [
        Row(things, None, gamma, steps, scheduler, 0, SMALL_SCENES, n)
        for steps in (25, 10, 5)
        for scheduler in SCHEDULERS
        for things in (1, 2)
    ]


@functools.cache
def scenes(seed: int, things: int, held: bool | None, n: int) -> Sequence[Scene]:
    """The first n scenes of a seed with so many things, seen or held out."""
    return list(itertools.islice(scenes_of(seed, things=things, held=held), n))


@functools.cache
def pipeline_of(model: Path) -> Any:
    torch.set_num_threads(1)
    return load_pocket(model)


def part(path: Path, row: Row, chosen: range, model: Path) -> None:
    """Paint, time, judge and store some pictures of a row."""
    wanted = scenes(row.scenes, row.things, row.held, row.n)[chosen.start : chosen.stop]
    _, verdicts, seconds = paint_scenes(
        pipeline_of(model),
        wanted,
        [row.seed * 1_000_000 + i for i in chosen],
        steps=row.steps,
        guidance_scale=row.gamma,
        scheduler=row.scheduler,
        batch=PART,
    )
    write_json(path, {"seconds": seconds, "verdicts": [v._asdict() for v in verdicts]})


def entry(row: Row, folder: Path) -> dict[str, Any] | None:
    """The row of the table, once all its parts are there: shares of pictures that are right in
    all, and in each part of the prompt; which ones are not."""
    if not all(path.exists() for path in row.parts(folder)):
        return None
    found = [json.loads(path.read_text(encoding="utf8")) for path in row.parts(folder)]
    verdicts = [verdict for one in found for verdict in one["verdicts"]]
    return {
        **dataclasses.asdict(row),
        "evaluations": row.evaluations,
        **{name: statistics.fmean(verdict[name] for verdict in verdicts) for name in SHARES},
        "iou": statistics.median(verdict["iou"] for verdict in verdicts),
        "wrong": [i for i, verdict in enumerate(verdicts) if not verdict["right"]],
        "processor_seconds_an_image": sum(one["seconds"] for one in found) / row.n,
    }


def best_scale(rows: Sequence[dict[str, Any]]) -> float | None:
    """The scale with the most right pictures of one and of two things together, the smaller one
    of equals; None until all are measured."""
    if len(rows) < 2 * len(SCALES):
        return None
    right = {s: statistics.fmean(r["right"] for r in rows if r["gamma"] == s) for s in SCALES}
    return max(SCALES, key=lambda scale: (right[scale], -scale))


def over_seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, for each kind of prompt of which all are there."""
    summary = []
    for things, held in itertools.product((1, 2), (False, True)):
        found = [row for row in rows if (row["things"], row["held"]) == (things, held)]
        if len(found) == len(SEEDS):
            shares = {name: estimate([row[name] for row in found])._asdict() for name in SHARES}
            summary.append({"things": things, "held": held, "n": found[0]["n"], **shares})
    return summary


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pocket_table")
    add = parser.add_argument
    add("--seconds", type=float, default=float("inf"), help="stop after so long")
    add("--prompts", type=int, default=PROMPTS, help=f"of each kind (default: {PROMPTS})")
    add("--small", type=int, default=SMALL, help=f"of the other two parts (default: {SMALL})")
    add("--model", type=Path, default=POCKET, help="another folder of diffusers")
    add("--parts", type=Path, default=PARTS, help="where parts are kept")
    add("--out", type=Path, default=FILE, help="the table")
    add("--processes", type=int, default=os.cpu_count(), help="default: one a core")
    return parser


def main(argv: list[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    stop = time.time() + options.seconds
    weights = sha256(options.model / "unet" / "diffusion_pytorch_model.safetensors")
    folder = options.parts / weights[:12]  # other weights, other parts

    def measure(rows: list[Row]) -> list[dict[str, Any]]:
        pieces = [(path, row, some) for row in rows for path, some in row.parts(folder).items()]
        make_parts(functools.partial(part, model=options.model), pieces, stop, options.processes)
        return [found for row in rows if (found := entry(row, folder))]

    guidance = measure(guidance_rows(options.small))
    scale = best_scale(guidance)
    accuracy, schedulers = [], []
    if scale is not None:
        accuracy = measure(accuracy_rows(options.prompts, scale))
        schedulers = measure(scheduler_rows(options.small, scale))
    write_json(
        options.out,
        {
            **provenance(_command(options), "cpu"),
            "weights_sha256": weights,
            "least_iou": LEAST_IOU,
            "guidance_scale": scale,
            "guidance": guidance,
            "accuracy": over_seeds(accuracy),
            "rows": accuracy,
            "schedulers": schedulers,
        },
    )
    whole = len(guidance) + len(accuracy) + len(schedulers)
    print(f"{whole} of {_planned()} rows are whole: {options.out}")


def _planned() -> int:
    return len(guidance_rows(1)) + len(accuracy_rows(1, 1.0)) + len(scheduler_rows(1, 1.0))


def _command(options: argparse.Namespace) -> str:
    """The command that stands in the table: what is not said by default, and no folder."""
    said = {"prompts": (options.prompts, PROMPTS), "small": (options.small, SMALL)}
    flags = "".join(f" --{name} {value}" for name, (value, usual) in said.items() if value != usual)
    return f"python -m benchmarks.pocket_table{flags}"


if __name__ == "__main__":
    main(sys.argv[1:])
