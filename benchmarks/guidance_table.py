"""What guidance gives and takes on MNIST: labels read as asked, distance, variety and certainty.

For each setting (steps S of DDIM, guidance scale, the times at which it is on, rescaling, clipping)
and each seed: images of the shipped network, each from a generator of its own, all settings from
the same noise and labels. Beside them real test images, and real training images with the same
labels: the floor. The network runs in bfloat16 where the row says so. Written to
diffusion_core/tables/guidance_mnist.json; parts of 100 images are kept in runs/guidance_table, so
that a stopped run goes on. One process a core, one thread each.

    DIFFUSION_DATA=DIR python -m benchmarks.guidance_table
    … --seconds 150    (stops after so long; the table holds the rows that are whole)
"""

import dataclasses
import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.painting import as_text, in_bf16, starts
from benchmarks.parts import RUNS, make_parts, stop_at
from diffusion_core.cli.provenance import provenance
from diffusion_core.data import Images, from_uint8, load_images, to_uint8
from diffusion_core.ddim import ddim_sample
from diffusion_core.evaluation import (
    Moments,
    agreement,
    frechet_distance,
    load_classifier,
    moments_at_shares,
)
from diffusion_core.files import read_safetensors, write_json, write_safetensors
from diffusion_core.guidance import classifier_free_guidance, condition, guidance_interval
from diffusion_core.networks import Classifier, classify
from diffusion_core.prediction import clip_x0
from diffusion_core.pretrained import TABLES, Pretrained, load_pretrained
from diffusion_core.sampling import last
from diffusion_core.schedules import timesteps

FILE = TABLES / "guidance_mnist.json"
PARTS = RUNS / "guidance_table"
REAL = PARTS / "real.json"
PART, BATCH, SHOWN = 100, 25, 10
SIZES = (200, 500, 2_000)  # images that are measured together; distances need equal numbers
DIGITS = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)  # of each, of 10,000 test images


@dataclasses.dataclass(frozen=True)
class Row:
    """One entry of the table; guidance is on for the times low < t <= high."""

    gamma: float
    S: int
    seed: int
    low: int = 0
    high: int = 1000
    rescale: float = 0.0
    clip: bool = True
    precision: str = "bf16"

    @property
    def name(self) -> str:
        return "_".join(str(value) for value in dataclasses.astuple(self))


SEEDS = (0, 1, 2)
STRONG, STRONGEST = 4.0, 8.0
THIRDS = ((700, 1000), (300, 700), (0, 300))
UNBOUND = [
    Row(STRONGEST, 10, 0, rescale=phi, clip=clip)
    for phi, clip in ((0.0, False), (0.7, False), (0.7, True))
]


def steps(seed: int) -> list[Row]:
    return [Row(1.0, S, seed) for S in (5, 10, 20)]


def scales(seed: int) -> list[Row]:
    return [Row(gamma, 10, seed) for gamma in (1.5, STRONG, STRONGEST, 0.0, -1.0, 2.0)]


def thirds(seed: int) -> list[Row]:
    return [Row(STRONG, 10, seed, low=low, high=high) for low, high in THIRDS]


PLAN: list[tuple[int, list[Row]]] = [  # what to paint first
    (200, [*steps(0), *scales(0), *thirds(0)]),
    (100, UNBOUND),
    *((200, [*steps(seed), *scales(seed)]) for seed in (1, 2)),
    *((200, thirds(seed)) for seed in (1, 2)),
    (200, [Row(1.0, 10, 0, precision="fp32")]),
    *((500, [*steps(seed), Row(1.5, 10, seed), Row(STRONG, 10, seed)]) for seed in SEEDS),
    *((2_000, [*steps(seed), Row(1.5, 10, seed)]) for seed in SEEDS),
]
ROWS = list(dict.fromkeys(row for _, part in PLAN for row in part))


def labels(seed: int) -> Tensor:
    """Labels, drawn with the shares of the test images."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor(DIGITS, dtype=torch.float64)
    return torch.multinomial(shares, SIZES[-1], replacement=True, generator=generator)


@functools.cache
def tools() -> tuple[Pretrained, Classifier]:
    torch.set_num_threads(1)
    return load_pretrained("mnist"), load_classifier()[0]


def paint(row: Row, chosen: range, sample: Callable[..., Iterator[Tensor]] = ddim_sample) -> Tensor:
    """The images of a row with these numbers, not clamped to the range."""
    pretrained, _ = tools()
    schedule, y = pretrained.schedule, labels(row.seed)[chosen.start : chosen.stop]
    net, null = in_bf16(pretrained.net, row.precision == "bf16"), pretrained.net.null_label
    model = classifier_free_guidance(net, y, null, row.gamma, rescale=row.rescale)
    if (row.low, row.high) != (0, schedule.T):
        model = guidance_interval(model, condition(net, y), row.low, row.high)
    model = clip_x0(model, schedule) if row.clip else model
    x_T, generators = starts(row.seed, chosen)
    times = timesteps(schedule.T, row.S)
    return last(sample(model, x_T, times, schedule, generator=generators))


def part_path(row: Row, start: int) -> Path:
    return PARTS / f"{row.name}_{start}.safetensors"


def part(path: Path, row: Row, start: int) -> None:
    """Paint and store PART images."""
    began = time.process_time()
    batches = [range(i, i + BATCH) for i in range(start, start + PART, BATCH)]
    x = torch.cat([paint(row, chosen) for chosen in batches])
    seconds = torch.tensor(time.process_time() - began)
    _, features = classify(tools()[1], x.clamp(-1, 1))
    found = {"x": x.half(), "features": features, "seconds": seconds}
    write_safetensors(path, found, {"format": "pt"})


def distance(features: Tensor, y: Tensor, test: Moments) -> float:
    """Squared Fréchet distance to the test images. Each digit is weighted to its share of them, for
    the luck of the draw of labels says nothing of the images."""
    return frechet_distance(moments_at_shares(features, y, torch.tensor(DIGITS)), test)


def measured(features: Tensor, y: Tensor, judge: Classifier) -> dict[str, Any]:
    """What the judge says of images that should show y: how many it reads as y, what probability
    it gives to y, for how many it is unsure (its largest probability below 0.9), and the variance
    of its features within a digit (sum over the 64, mean over the images)."""
    probability = judge.head(features.float().relu()).softmax(1)
    return {
        "agreement": agreement(probability.argmax(1), y),
        "confidence": probability.gather(1, y[:, None]).mean().item(),
        "unsure": (probability.amax(1) < 0.9).double().mean().item(),
        "spread": within(features, y).item(),
        "spread_by_digit": [round(features[y == k].var(0).sum().item(), 2) for k in range(10)],
    }


def within(features: Tensor, y: Tensor) -> Tensor:
    """The variance within a digit, unbiased."""
    shares = torch.bincount(y, minlength=10) / len(y)
    return sum(shares[k] * features[y == k].var(0).sum() for k in range(10) if shares[k])


def entry(row: Row, test: Moments, judge: Classifier) -> dict[str, Any] | None:
    """The row of the table: what its first 200, 500, … images measure, as far as they are there."""
    starts = itertools.takewhile(lambda i: part_path(row, i).exists(), itertools.count(0, PART))
    parts = [read_safetensors(part_path(row, start))[0] for start in starts]
    if not parts:
        return None
    features, x = (torch.cat([p[key] for p in parts]) for key in ("features", "x"))
    y, first = labels(row.seed), x[:PART].float()
    return {
        **dataclasses.asdict(row),
        "sizes": {
            n: {
                "frechet": distance(features[:n], y[:n], test),
                **measured(features[:n], y[:n], judge),
            }
            for n in SIZES
            if n <= len(x)
        },
        "outside": (first.abs() > 1.02).double().mean().item(),
        "white": (first > 0.98).double().mean().item(),
        "read": judge.head(features[:PART].float().relu()).argmax(1).tolist(),
        "processor_seconds_an_image": sum(p["seconds"].item() for p in parts) / len(x),
        **({"pixels": as_text(to_uint8(x[:SHOWN].float()))} if row.seed == 0 else {}),
    }


def real_features(real: Images, seed: int, n: int, judge: Classifier, drawn: int = 0) -> Tensor:
    """Features of real training images with the labels of a row; other images for each `drawn`."""
    generator, y = torch.Generator().manual_seed(seed), labels(seed)[:n]
    order = torch.randperm(len(real.labels), generator=generator)
    index = torch.empty(n, dtype=torch.int64)
    for k in range(10):
        count = int((y == k).sum())
        index[y == k] = order[real.labels[order] == k][drawn * count :][:count]
    return classify(judge, from_uint8(real.pixels[index]))[1]


def floor(real: Images, seed: int, n: int, test: Moments, judge: Classifier) -> dict[str, Any]:
    """What real training images with the labels of a row measure."""
    features, y = real_features(real, seed, n, judge), labels(seed)[:n]
    return {
        "seed": seed,
        "n": n,
        "frechet": distance(features, y, test),
        **measured(features, y, judge),
    }


def real(known: Moments, judge: Classifier) -> dict[str, Any]:
    """What real test images measure, and real training images, the floor."""
    train, test = load_images("mnist", "train"), load_images("mnist", "test")
    _, features = classify(judge, from_uint8(test.pixels))
    sizes = [(seed, n) for n in SIZES for seed in SEEDS]
    return {
        "test": {"n": len(test.labels), **measured(features, test.labels, judge)},
        "floor": [floor(train, seed, n, known, judge) for seed, n in sizes],
    }


def main() -> None:
    stop = stop_at("guidance_table")
    work = [(row, i) for n, plan in PLAN for row in plan for i in range(0, n, PART)]
    pieces = [(part_path(*item), *item) for item in dict.fromkeys(work)]
    make_parts(part, pieces, stop, os.cpu_count())
    pretrained, (judge, known, _) = load_pretrained("mnist"), load_classifier()
    rows = [found for row in ROWS if (found := entry(row, known["test"], judge))]
    if not REAL.exists():
        write_json(REAL, real(known["test"], judge))
    write_json(
        FILE,
        {
            **provenance("python -m benchmarks.guidance_table", "cpu"),
            "weights_sha256": pretrained.card["sha256"],
            "sampler": "ddim_sample(eta = 0), timesteps(1000, S), x_0 clipped to [-1, 1] if clip",
            "labels": "drawn with the shares of the test images",
            **json.loads(REAL.read_text()),
            "rows": rows,
        },
    )
    print(f"{sum(not path.exists() for path, _, _ in pieces)} parts are open")


if __name__ == "__main__":
    main()
