"""DDIM against DDPM on MNIST, with and without guidance: quality, variety and cost.

For each sampler (DDPM with the posterior variance, DDIM with eta = 0), number of steps S, guidance
scale and seed: the same images from the shipped network, that is the same labels and starts, each
from a generator of its own. Beside them real training images with the same labels: the floor. The
images of all seeds together are one more row of each setting, with seed null. The network runs in
bfloat16. Written to diffusion_core/tables/study_mnist.json; parts of 50 images are kept in
runs/study, so that a stopped run goes on. One process a core, one thread each.

    DIFFUSION_DATA=DIR python -m benchmarks.study
    … --seconds 120    (stops after so long; the table holds the rows that are whole)
"""

import dataclasses
import os
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import guidance_table
from benchmarks.guidance_table import distance, labels, measured, real_features, tools
from benchmarks.parts import RUNS, make_parts, stop_at
from diffusion_core.cli.provenance import provenance
from diffusion_core.data import from_uint8, load_images
from diffusion_core.ddim import ddim_sample
from diffusion_core.ddpm import ddpm_sample
from diffusion_core.evaluation import (
    estimate,
    frechet_distance,
    kernel_distance,
    load_classifier,
    moments,
)
from diffusion_core.files import read_safetensors, write_json, write_safetensors
from diffusion_core.networks import Classifier, classify
from diffusion_core.pretrained import TABLES, load_pretrained

FILE = TABLES / "study_mnist.json"
PARTS = RUNS / "study"
REAL = PARTS / "real.safetensors"
N, PART, BATCH = 200, 50, 25
DRAWN = 20  # sets of real images, for the floor


@dataclasses.dataclass(frozen=True)
class Row:
    """One entry of the table."""

    sampler: Literal["ddpm", "ddim"]
    S: int
    gamma: float
    seed: int

    @property
    def evaluations(self) -> int:
        """How often the network is asked for an image: twice a step with guidance."""
        return self.S * (1 if self.gamma == 1 else 2)

    def parts(self) -> dict[Path, int]:
        """The file of each part, and its first image."""
        name = "_".join(str(value) for value in dataclasses.astuple(self))
        return {PARTS / f"{name}_{start}.safetensors": start for start in range(0, N, PART)}


SEEDS = (0, 1, 2)
SETTINGS = [(S, 1.0) for S in (5, 10, 20, 50)] + [(S, 1.5) for S in (5, 10)]
ROWS = [
    Row(sampler, S, gamma, seed)
    for seed in SEEDS
    for S, gamma in SETTINGS
    for sampler in ("ddpm", "ddim")
]
PLAN = sorted(ROWS, key=lambda row: (row.gamma, row.evaluations))  # what to paint first


def paint(row: Row, chosen: range) -> Tensor:
    """The images of a row with these numbers."""
    sample = {"ddpm": ddpm_sample, "ddim": ddim_sample}[row.sampler]
    same = guidance_table.Row(row.gamma, row.S, row.seed)
    return guidance_table.paint(same, chosen, sample).clamp(-1, 1)


def part(path: Path, row: Row, start: int) -> None:
    """Paint, time, judge and store PART images."""
    tools()  # loaded before the clock starts
    began = time.process_time()
    batches = [range(i, i + BATCH) for i in range(start, start + PART, BATCH)]
    x = torch.cat([paint(row, chosen) for chosen in batches])
    seconds = torch.tensor(time.process_time() - began)
    _, features = classify(tools()[1], x)
    write_safetensors(path, {"features": features, "seconds": seconds}, {"format": "pt"})


def entry(features: Tensor, y: Tensor, test: Tensor, judge: Classifier) -> dict[str, Any]:
    """What the judge says of images that should show y."""
    return {
        "n": len(y),
        "frechet": distance(features, y, moments(test)),  # each digit at its share
        "frechet_as_drawn": frechet_distance(moments(features), moments(test)),
        "kernel": kernel_distance(features, test[::5]),
        **measured(features, y, judge),
    }


def real() -> dict[str, Tensor]:
    """Features of all test images; and of DRAWN x N training images a seed, (DRAWN, N, D), with
    the labels of the rows."""
    if not REAL.exists():
        train, test, judge = load_images("mnist", "train"), load_images("mnist", "test"), tools()[1]
        found = {
            str(seed): torch.stack(
                [real_features(train, seed, N, judge, drawn) for drawn in range(DRAWN)]
            )
            for seed in SEEDS
        }
        found["test"] = classify(judge, from_uint8(test.pixels))[1]
        write_safetensors(REAL, found, {"format": "pt"})
    return read_safetensors(REAL)[0]


def floor(features: Tensor, y: Tensor, test: Tensor, judge: Classifier) -> dict[str, Any]:
    """What sets of real images with labels y measure: mean and spread over the sets."""
    found = [entry(f, y, test, judge) for f in features]
    names = ("frechet", "frechet_as_drawn", "kernel", "agreement", "unsure", "spread")
    return {"n": len(y)} | {k: estimate([f[k] for f in found])._asdict() for k in names}


def table(judge: Classifier) -> dict[str, Any]:
    """The floor, and the rows of which all parts are there; seed null: of all seeds together."""
    known, y = real(), {seed: labels(seed)[:N] for seed in SEEDS}
    test, all_y = known["test"], torch.cat(list(y.values()))
    real_sets = {seed: known[str(seed)] for seed in SEEDS}
    floors = [{"seed": seed, **floor(real_sets[seed], y[seed], test, judge)} for seed in SEEDS]
    all_real = torch.cat(list(real_sets.values()), 1)
    floors.append({"seed": None, **floor(all_real, all_y, test, judge)})
    rows, pieces = [], {}
    for row in ROWS:
        if not all(path.exists() for path in row.parts()):
            continue
        parts = [read_safetensors(path)[0] for path in row.parts()]
        features = torch.cat([p["features"] for p in parts])
        what = {**dataclasses.asdict(row), "evaluations": row.evaluations}
        seconds = statistics.median(p["seconds"].item() / PART for p in parts)
        found = entry(features, y[row.seed], test, judge)
        rows.append({**what, **found, "processor_seconds_an_image": seconds})
        pieces.setdefault((row.sampler, row.S, row.gamma), []).append((what, features))
    for whole in pieces.values():
        if len(whole) == len(SEEDS):
            features = torch.cat([f for _, f in whole])
            rows.append({**whole[0][0], "seed": None, **entry(features, all_y, test, judge)})
    return {"floor": floors, "rows": rows}


def main() -> None:
    stop = stop_at("study")
    pieces = [(path, row, start) for row in PLAN for path, start in row.parts().items()]
    make_parts(part, pieces, stop, os.cpu_count())
    pretrained, (judge, _, _) = load_pretrained("mnist"), load_classifier()
    write_json(
        FILE,
        {
            **provenance("python -m benchmarks.study", "cpu"),
            "weights_sha256": pretrained.card["sha256"],
            "sampler": "ddpm_sample (posterior variance) or ddim_sample (eta = 0), timesteps(1000, S), "
            "x_0 clipped to [-1, 1]",
            "labels": "drawn with the shares of the test images",
            **table(judge),
        },
    )
    print(f"{sum(not path.exists() for path, _, _ in pieces)} parts are open")


if __name__ == "__main__":
    main()
