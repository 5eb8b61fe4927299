"""What `python -m diffusion_core evaluate` measures of one seed's images: labels, distances to
real images, nearest neighbours, and the bound on the likelihood."""

from __future__ import annotations

import base64
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_core.data import Images, from_uint8
from diffusion_core.evaluation import metrics
from diffusion_core.guidance import condition
from diffusion_core.likelihood import bits_per_dim, estimate_bound
from diffusion_core.networks import Classifier, classify
from diffusion_core.prediction import clip_x0
from diffusion_core.pretrained import Pretrained, Sampler, generate

NEAREST = 200  # images of a seed that are compared with every training image
SHOWN = 10  # of these, the neighbours that are stored
LABELLED = 100  # images of a seed whose labels, asked for and read, are stored
BOUND = 100  # test images whose likelihood is bounded
QUANTILES = (0, 5, 50)  # per cent, of the distances to the nearest training image


class Setting(NamedTuple):
    """What all seeds share: the judge, the features of the test images, the real
    images, and how many are painted, in how many steps, and how."""

    judge: Classifier
    test_features: Tensor
    real: Images
    test: Images
    samples: int
    steps: int
    device: str
    sampler: Sampler = "ddpm"
    eta: float | None = None
    guidance_scale: float | None = None


def evaluate_seed(model: Pretrained, setting: Setting, seed: int) -> dict[str, Any]:
    """One row of the table: what n samples of this seed measure, beside n real images
    drawn at random, the floor; the samples are asked for with the labels of those
    images."""
    n, real = setting.samples, setting.real
    chosen = torch.randperm(len(real.pixels), generator=torch.Generator().manual_seed(seed))[:n]
    y = real.labels[chosen]
    began = time.perf_counter()
    x = generate(
        model,
        y,
        n,
        setting.steps,
        seed,
        setting.device,
        sampler=setting.sampler,
        eta=setting.eta,
        guidance_scale=setting.guidance_scale,
    )
    seconds = time.perf_counter() - began
    read, features = classify(setting.judge, x)
    _, real_features = classify(setting.judge, from_uint8(real.pixels[chosen]))
    held_out = _part(setting.test, seed, NEAREST)
    return {
        "seed": seed,
        "agreement": metrics.agreement(read, y),
        **_distances(features, real_features, setting.test_features),
        **_quantiles("nearest", metrics.nearest_neighbours(x[:NEAREST], real.x)[0]),
        **_quantiles("nearest_test", metrics.nearest_neighbours(held_out.x, real.x)[0]),
        "bits_per_dim": _bits(model, _part(setting.test, seed, BOUND), seed, setting.device),
        "labels": {"asked": y[:LABELLED].tolist(), "read": read[:LABELLED].tolist()},
        "neighbours": _neighbours(x[:SHOWN], real),
        "seconds": round(seconds, 1),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean, spread and number of every figure of the rows.

    Returns: for one row alone the spread is None.
    """
    keys = [k for k, v in rows[0].items() if isinstance(v, float) and k != "seconds"]
    if len(rows) == 1:
        return {key: {"mean": rows[0][key], "std": None, "n": 1} for key in keys}
    return {key: metrics.estimate([row[key] for row in rows])._asdict() for key in keys}


def _bits(model: Pretrained, images: Images, seed: int, device: str) -> float:
    """Bits per dimension of test images, given their labels. Only the net runs on the device:
    the bound wants float64, which not every device has."""
    x_0, net = images.x, condition(model.net.to(device), images.labels.to(device))
    eps_model = clip_x0(lambda x, t: net(x.to(device), t).cpu(), model.schedule)
    generator = torch.Generator().manual_seed(seed)
    nats = estimate_bound(eps_model, x_0, model.schedule, generator=generator)
    return bits_per_dim(nats, x_0).mean().item()


def _part(images: Images, seed: int, n: int) -> Images:
    """n images, other ones for each seed."""
    index = (torch.arange(n) + seed * n) % len(images.pixels)
    return Images(images.pixels[index], images.labels[index])


def _distances(features: Tensor, real_features: Tensor, test_features: Tensor) -> dict[str, float]:
    """Fréchet and kernel distance of samples to test images, and of real training images: the
    floor."""
    test = metrics.moments(test_features)
    return {
        "frechet": metrics.frechet_distance(metrics.moments(features), test),
        "frechet_floor": metrics.frechet_distance(metrics.moments(real_features), test),
        "kernel": metrics.kernel_distance(features, test_features),
        "kernel_floor": metrics.kernel_distance(real_features, test_features),
    }


def _quantiles(name: str, distances: Tensor) -> dict[str, float]:
    return {f"{name}_{q}%": torch.quantile(distances.double(), q / 100).item() for q in QUANTILES}


def _neighbours(x: Tensor, real: Images) -> list[dict[str, Any]]:
    """Of each image the nearest training image: its number, its distance, and its pixels as
    base64 (they are needed where the data is not)."""
    distances, index = metrics.nearest_neighbours(x, real.x)
    return [
        {
            "index": int(i),
            "distance": round(float(d), 3),
            "pixels": base64.b64encode(real.pixels[i].numpy().tobytes()).decode(),
        }
        for d, i in zip(distances, index, strict=True)
    ]
