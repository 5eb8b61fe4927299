"""What guidance gives and takes on MNIST: labels read as asked, distance, variety and certainty.

For each setting (steps S of DDIM, guidance scale, the times at which it is on, rescaling, clipping)
and each seed: images of the shipped network, each from a generator of its own, all settings from
the same noise and labels. Beside them real test images, and real training images with the same
labels: the floor. The network runs in bfloat16 where the row says so. Written to
diffusion_core/tables/guidance_mnist.json; parts of 100 images are kept in runs/guidance_table, so
that a stopped run goes on.

    DIFFUSION_DATA=DIR python -m benchmarks.guidance_table
    … --seconds 150    (stops after so long; the table holds the rows that are whole)
"""

import argparse
import base64
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_core.commands import provenance
from diffusion_core.data import Images, from_uint8, load_images, to_uint8
from diffusion_core.ddim import ddim_sample
from diffusion_core.evaluation import (
    Moments,
    agreement,
    frechet_distance,
    load_classifier,
    moments,
)
from diffusion_core.files import read_safetensors, write_json, write_safetensors
from diffusion_core.guidance import classifier_free_guidance, condition, guidance_interval
from diffusion_core.networks import Classifier, classify
from diffusion_core.prediction import clip_x0
from diffusion_core.pretrained import TABLES, Pretrained, load_pretrained
from diffusion_core.sampling import last
from diffusion_core.schedules import timesteps

FILE = TABLES / "guidance_mnist.json"
PARTS = Path(__file__).resolve().parents[1] / "runs" / "guidance_table"
PART, SMALL, LARGE, SHOWN = 100, 500, 2_000, 10
DIGITS = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)  # of each, of 10,000 test images


@dataclasses.dataclass(frozen=True)
class Row:
    """One entry of the table; guidance is on for the times low < t <= high."""

    gamma: float
    S: int
    seed: int
    n: int = SMALL
    low: int = 0
    high: int = 1000
    rescale: float = 0.0
    clip: bool = True
    precision: str = "bf16"

    @property
    def name(self) -> str:
        """All but n: a longer row goes on where a shorter one stops."""
        values = dataclasses.asdict(self) | {"n": ""}
        return "_".join(str(value) for value in values.values())


SEEDS = (0, 1, 2)
STRONG = 4.0
ROWS = [
    *(Row(g, 10, seed, SMALL if seed else LARGE) for seed in SEEDS for g in (1.0, 1.5)),
    *(Row(1.0, S, 0, LARGE) for S in (5, 20)),
    *(Row(g, 10, 0) for g in (0.0, 0.5, 2.0, STRONG, 8.0, -1.0)),
    Row(1.0, 50, 0),
    *(Row(STRONG, 10, 0, low=low, high=high) for low, high in ((700, 1000), (300, 700), (0, 300))),
    *(Row(g, 10, seed) for seed in SEEDS[1:] for g in (0.0, 0.5, 2.0, STRONG, 8.0)),
    *(Row(g, 10, seed, LARGE) for seed in SEEDS[1:] for g in (1.0, 1.5)),
    *(
        Row(8.0, 10, 0, rescale=phi, clip=clip)
        for phi, clip in ((0, False), (0.7, True), (0.7, False))
    ),
    Row(1.0, 10, 0, precision="fp32"),
    *(
        Row(STRONG, 10, seed, low=low, high=high)
        for seed in SEEDS[1:]
        for low, high in ((700, 1000), (300, 700), (0, 300))
    ),
    *(Row(1.0, S, seed, LARGE) for seed in SEEDS[1:] for S in (5, 20)),
    *(Row(1.0, 50, seed) for seed in SEEDS[1:]),
]


def labels(seed: int, n: int = LARGE) -> Tensor:
    """The first n of LARGE labels, drawn with the shares of the test images."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor(DIGITS, dtype=torch.float64)
    return torch.multinomial(shares, LARGE, replacement=True, generator=generator)[:n]


def paint(row: Row, chosen: range, pretrained: Pretrained) -> Tensor:
    """The images of a row with these numbers, not clamped to the range."""
    schedule, y = pretrained.schedule, labels(row.seed)[chosen.start : chosen.stop]

    def net(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=row.precision == "bf16"):
            return pretrained.net(x, t, y).float()

    null = pretrained.net.null_label
    model = classifier_free_guidance(net, y, null, row.gamma, rescale=row.rescale)
    if (row.low, row.high) != (0, schedule.T):
        model = guidance_interval(model, condition(net, y), row.low, row.high)
    model = clip_x0(model, schedule) if row.clip else model
    generators = [torch.Generator().manual_seed(row.seed * 1_000_000 + i) for i in chosen]
    x_T = torch.stack([torch.randn(1, 28, 28, generator=g) for g in generators])
    return last(ddim_sample(model, x_T, timesteps(schedule.T, row.S), schedule))


def part_path(row: Row, start: int) -> Path:
    return PARTS / f"{row.name}_{start}.safetensors"


def part(row: Row, start: int, pretrained: Pretrained, judge: Classifier) -> None:
    """Paint, read and store PART images."""
    began = time.process_time()
    x = paint(row, range(start, start + PART), pretrained)
    seconds = torch.tensor(time.process_time() - began)
    _, features = classify(judge, x.clamp(-1, 1))
    found = {"x": x.half(), "features": features, "seconds": seconds}
    write_safetensors(part_path(row, start), found, {"format": "pt"})


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
    """The row of the table, or None while parts are missing."""
    paths = [part_path(row, start) for start in range(0, row.n, PART)]
    if not all(path.exists() for path in paths):
        return None
    parts = [read_safetensors(path)[0] for path in paths]
    features, x = (torch.cat([p[key] for p in parts]) for key in ("features", "x"))
    y, seconds = labels(row.seed, row.n), torch.stack([p["seconds"] for p in parts]).sum()
    shown = base64.b64encode(to_uint8(x[:SHOWN].float()).numpy().tobytes()).decode()
    read = judge.head(features[:PART].float().relu()).argmax(1)
    return {
        **dataclasses.asdict(row),
        "frechet": frechet_distance(moments(features), test),
        **measured(features, y, judge),
        "outside": (x.abs() > 1.02).double().mean().item(),
        "white": (x.float() > 0.98).double().mean().item(),
        **({"first": small(features, y, test, judge)} if row.n > SMALL else {}),
        "read": read.tolist(),
        **({"pixels": shown} if row.seed == 0 else {}),
        "processor_seconds": round(seconds.item(), 1),
    }


def small(features: Tensor, y: Tensor, test: Moments, judge: Classifier) -> dict[str, Any]:
    """The first SMALL images of a longer row, to be compared with rows of that length."""
    f, y = features[:SMALL], y[:SMALL]
    return {"n": SMALL, "frechet": frechet_distance(moments(f), test), **measured(f, y, judge)}


def floor(real: Images, seed: int, n: int, test: Moments, judge: Classifier) -> dict[str, Any]:
    """Real training images with the labels of a row."""
    generator, y = torch.Generator().manual_seed(seed), labels(seed, n)
    order = torch.randperm(len(real.labels), generator=generator)
    index = torch.empty(n, dtype=torch.int64)
    for k in range(10):
        index[y == k] = order[real.labels[order] == k][: int((y == k).sum())]
    _, features = classify(judge, from_uint8(real.pixels[index]))
    return {
        "seed": seed,
        "n": n,
        "frechet": frechet_distance(moments(features), test),
        **measured(features, y, judge),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance_table")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    stop = time.monotonic() + parser.parse_args().seconds
    pretrained, (judge, known, _) = load_pretrained("mnist"), load_classifier()
    for row in ROWS:
        for start in range(0, row.n, PART):
            if time.monotonic() > stop or part_path(row, start).exists():
                continue
            part(row, start, pretrained, judge)
            print(row.name, start, flush=True)
    whole = {row: found for row in ROWS if (found := entry(row, known["test"], judge))}
    longest = {row.name: found for row, found in whole.items()}
    train, test = load_images("mnist", "train"), load_images("mnist", "test")
    _, features = classify(judge, from_uint8(test.pixels))
    write_json(
        FILE,
        {
            **provenance("python -m benchmarks.guidance_table", "cpu"),
            "weights_sha256": pretrained.card["sha256"],
            "sampler": "ddim_sample(eta = 0), timesteps(1000, S), x_0 clipped to [-1, 1] if clip",
            "labels": "drawn with the shares of the test images",
            "test": {"n": len(test.labels), **measured(features, test.labels, judge)},
            "floor": [
                floor(train, seed, n, known["test"], judge)
                for n in (SMALL, LARGE)
                for seed in SEEDS
            ],
            "rows": list(longest.values()),
        },
    )
    print(f"{len(whole)} of {len(ROWS)} rows")


if __name__ == "__main__":
    main()
