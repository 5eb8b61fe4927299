"""DDPM and DDIM on MNIST, in few steps and in a thousand: table 1 of J. Song et al. 2020 in miniature.

For each way of choosing the noise and each number of steps: the Fréchet distance of 100 images to
the real test images, and how many of them a classifier reads as the digit asked for. All rows of a
seed start from the same noise. The network runs in bfloat16 where the
row says so. Written to diffusion_core/tables/ddim_mnist.json; parts of the rows are kept in
runs/ddim_table, so that a stopped run goes on.

    python -m benchmarks.ddim_table
    python -m benchmarks.ddim_table --seconds 150    (stops after so long; the table holds what is done)
"""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.painting import as_text, in_bf16, starts
from benchmarks.parts import RUNS, make_parts, stop_at
from diffusion_core.cli.provenance import provenance
from diffusion_core.data import to_uint8
from diffusion_core.ddim import Eta, ddim_sample
from diffusion_core.evaluation import (
    Moments,
    agreement,
    estimate,
    frechet_distance,
    load_classifier,
    moments,
)
from diffusion_core.files import read_safetensors, write_json, write_safetensors
from diffusion_core.guidance import condition
from diffusion_core.networks import Classifier, classify
from diffusion_core.prediction import clip_x0
from diffusion_core.pretrained import TABLES, Pretrained, load_pretrained
from diffusion_core.sampling import last
from diffusion_core.schedules import timesteps

FILE = TABLES / "ddim_mnist.json"
PARTS = RUNS / "ddim_table"
N, SHOWN = 100, 10
DIGITS = torch.arange(N) % 10  # what is asked for: as many of each


@dataclasses.dataclass(frozen=True)
class Row:
    """One entry of the table: eta is a number, or "hat" for the larger variance, beta."""

    eta: Eta
    S: int
    seed: int
    precision: str = "bf16"
    clip: bool = True

    @property
    def name(self) -> str:
        clip = "" if self.clip else "_unclipped"
        return f"{self.eta}_{self.S}_{self.seed}_{self.precision}{clip}"

    def parts(self) -> dict[Path, range]:
        """The file of each part, and the images that are painted together."""
        size = 50 if self.S <= 100 else 25
        return {
            PARTS / f"{self.name}_{i}.safetensors": range(i, i + size) for i in range(0, N, size)
        }


ETAS: tuple[Eta, ...] = (0.0, 0.2, 0.5, 1.0, "hat")
ROWS = [
    *(Row(eta, 10, 0) for eta in ETAS),
    Row(0.0, 10, 0, "fp32"),
    Row(0.0, 10, 0, clip=False),
    *(Row(eta, 20, 0) for eta in ETAS),
    *(Row(eta, 50, 0) for eta in (0.0, 1.0, "hat")),
    *(Row(eta, 10, seed) for seed in (1, 2) for eta in ETAS),
    Row(1.0, 1000, 0),
    *(Row(eta, 50, 0) for eta in (0.2, 0.5)),
    *(Row(eta, 20, seed) for seed in (1, 2) for eta in ETAS),
    *(Row(eta, 100, 0) for eta in ETAS),
    *(Row(eta, 50, seed) for seed in (1, 2) for eta in ETAS),
]


def paint(row: Row, chosen: range, pretrained: Pretrained) -> Tensor:
    """The images of a row with these numbers; each has a generator of its own."""
    schedule, grid = pretrained.schedule, timesteps(pretrained.schedule.T, row.S)
    y = DIGITS[chosen.start : chosen.stop]
    net = condition(in_bf16(pretrained.net, row.precision == "bf16"), y)
    model = clip_x0(net, schedule) if row.clip else net
    x_T, generators = starts(row.seed, chosen)
    walked = ddim_sample(model, x_T, grid, schedule, eta=row.eta, generator=generators)
    return last(walked).clamp(-1, 1)


def part(path: Path, row: Row, chosen: range, *, pretrained: Pretrained, judge: Classifier) -> None:
    """Paint, read and store some images of a row."""
    began, clock = time.process_time(), time.perf_counter()
    x = paint(row, chosen, pretrained)
    seconds = torch.tensor([time.process_time() - began, time.perf_counter() - clock])
    read, features = classify(judge, x)
    found = {"x": to_uint8(x), "read": read, "features": features, "seconds": seconds}
    write_safetensors(path, found, {"format": "pt"})


def floor() -> dict[str, float] | None:
    """What N images measure that are drawn from one source, as many of each digit, against the
    source itself. Its digits are normal, with the features' means and their common covariance of
    the rows with eta = 1; None while there are none."""
    rows = [row for row in ROWS if row.eta == 1.0 and row.S >= 20]
    there = {path: some for row in rows for path, some in row.parts().items() if path.exists()}
    if len(there) < 4:
        return None
    digit = torch.cat([DIGITS[list(chosen)] for chosen in there.values()])
    features = torch.cat([read_safetensors(path)[0]["features"] for path in there]).double()
    means = torch.stack([features[digit == k].mean(0) for k in range(10)])
    within = torch.cov((features - means[digit]).T)
    between = torch.cov(means.T, correction=0)
    source = Moments(means.mean(0), within + between, len(features))
    root = torch.linalg.cholesky(within + 1e-6 * torch.eye(len(within)).double())
    found = []
    for seed in range(50):
        z = torch.randn(N, len(root), generator=torch.Generator().manual_seed(seed)).double()
        found.append(frechet_distance(moments(means[DIGITS] + z @ root.T), source))
    return estimate(found)._asdict()


def entry(row: Row, test: Any) -> dict[str, Any] | None:
    """The row of the table, or None while parts are missing."""
    if not all(path.exists() for path in row.parts()):
        return None
    parts = [read_safetensors(path)[0] for path in row.parts()]
    features, read = (torch.cat([p[key] for p in parts]) for key in ("features", "read"))
    seconds = torch.stack([p["seconds"] for p in parts]).sum(0)
    pixels = torch.cat([p["x"] for p in parts])[:SHOWN]
    return {
        **dataclasses.asdict(row),
        "frechet": frechet_distance(moments(features), test),
        "agreement": agreement(read, DIGITS),
        "processor_seconds": round(seconds[0].item(), 1),
        "seconds": round(seconds[1].item(), 1),
        **({"pixels": as_text(pixels)} if row.seed == 0 else {}),
    }


def main() -> None:
    stop = stop_at("ddim_table")
    pretrained, (judge, real, _) = load_pretrained("mnist"), load_classifier()
    pieces = [(path, row, chosen) for row in ROWS for path, chosen in row.parts().items()]
    make_parts(partial(part, pretrained=pretrained, judge=judge), pieces, stop)
    rows = [found for row in ROWS if (found := entry(row, real["test"]))]
    write_json(
        FILE,
        {
            **provenance("python -m benchmarks.ddim_table", "cpu"),
            "weights_sha256": pretrained.card["sha256"],
            "samples": N,
            "floor": floor(),
            "sampler": "ddim_sample(eta), timesteps(1000, S), x_0 clipped to [-1, 1] unless clip is false, no guidance",
            "labels": "0 to 9 in turn",
            "rows": rows,
        },
    )
    print(f"{len(rows)} of {len(ROWS)} rows")


if __name__ == "__main__":
    main()
