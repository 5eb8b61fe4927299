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

import argparse
import dataclasses
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.guidance_table import distance, labels, measured, real_features, tools
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
from diffusion_core.guidance import classifier_free_guidance
from diffusion_core.networks import Classifier, classify
from diffusion_core.prediction import clip_x0
from diffusion_core.pretrained import TABLES, load_pretrained
from diffusion_core.sampling import last
from diffusion_core.schedules import timesteps

FILE = TABLES / "study_mnist.json"
PARTS = Path(__file__).resolve().parents[1] / "runs" / "study"
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

    def paths(self) -> list[tuple[int, Path]]:
        """The first image of each part, and its file."""
        name = "_".join(str(value) for value in dataclasses.astuple(self))
        return [(start, PARTS / f"{name}_{start}.safetensors") for start in range(0, N, PART)]


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
    pretrained, _ = tools()
    schedule, y = pretrained.schedule, labels(row.seed)[chosen.start : chosen.stop]

    def net(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return pretrained.net(x, t, y).float()

    guided = classifier_free_guidance(net, y, pretrained.net.null_label, row.gamma)
    model, times = clip_x0(guided, schedule), timesteps(schedule.T, row.S)
    generators = [torch.Generator().manual_seed(row.seed * 1_000_000 + i) for i in chosen]
    x_T = torch.stack([torch.randn(1, 28, 28, generator=g) for g in generators])
    sample = {"ddpm": ddpm_sample, "ddim": ddim_sample}[row.sampler]
    return last(sample(model, x_T, times, schedule, generator=generators)).clamp(-1, 1)


def part(row: Row, start: int, path: Path, stop: float) -> str:
    """Paint, time, judge and store PART images, unless it is too late."""
    if time.time() > stop:
        return ""
    tools()  # loaded before the clock starts
    began = time.process_time()
    batches = [range(i, i + BATCH) for i in range(start, start + PART, BATCH)]
    x = torch.cat([paint(row, chosen) for chosen in batches])
    seconds = torch.tensor(time.process_time() - began)
    _, features = classify(tools()[1], x)
    write_safetensors(path, {"features": features, "seconds": seconds}, {"format": "pt"})
    return path.stem


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
        if not all(path.exists() for _, path in row.paths()):
            continue
        parts = [read_safetensors(path)[0] for _, path in row.paths()]
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    stop = time.time() + parser.parse_args().seconds
    work = [(row, *piece) for row in PLAN for piece in row.paths() if not piece[1].exists()]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        tasks = [pool.submit(part, *piece, stop) for piece in work]
        for task in tasks:
            if done := task.result():
                print(done, flush=True)
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
    print(f"{sum(not path.exists() for row in ROWS for _, path in row.paths())} parts are open")


if __name__ == "__main__":
    main()
