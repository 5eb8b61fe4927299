"""Images from trained weights: many at once, each with a generator of its own."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_core._validate import UsageError, check_choice, check_device, check_whole
from diffusion_core.data import SIZES
from diffusion_core.ddim import ddim_sample
from diffusion_core.ddpm import ddpm_sample
from diffusion_core.guidance import classifier_free_guidance, condition
from diffusion_core.networks import UNet
from diffusion_core.prediction import EpsModel, clip_x0
from diffusion_core.pretrained.loading import Pretrained
from diffusion_core.schedules import NoiseSchedule, timesteps

Sampler = Literal["ddpm", "ddim"]
_APART = 1_000_000  # between the generators of two seeds: how many images a seed has


def generate(
    model: Pretrained,
    y: Tensor | None,
    n: int,
    steps: int,
    seed: int,
    device: str,
    batch_size: int | None = None,
    *,
    sampler: Sampler = "ddpm",
    eta: float | None = None,
    guidance_scale: float | None = None,
) -> Tensor:
    """n images along a strided chain, x_0 clipped to [-1, 1]: (n, C, H, W) on the CPU. Image i has
    a generator of its own, and no two seeds share one. eta is ddim_sample's, None its default;
    guidance_scale that of classifier_free_guidance, None for the labels alone.

    Shapes: y (n,) int64, or None for no labels.
    Raises: UsageError if y does not hold n labels, n is not in 1..1,000,000, the seed not in
        0..2^32 - 1, the device not available, or the card names unknown data, and as
        check_sampling; ValueError if the net does not know a label; TypeError unless n, steps
        and seed are int.
    """
    check_whole("n", n, 1)
    check_whole("seed", seed, 0)
    if n > _APART or seed >= 2**32:
        raise UsageError(
            f"n = {n}, seed = {seed}: a seed must be less than 2**32, and has {_APART:,} images"
        )
    check_device(device)
    check_sampling(model, steps, sampler=sampler, eta=eta, guidance_scale=guidance_scale)
    _check_labels(y, n, model.net, guidance_scale)
    net, schedule = model.net.to(device), model.schedule
    size, parts = _size(model.card["data"]["name"]), []
    walk = _walk(sampler, eta, steps, schedule)
    for chunk in torch.arange(n).split(batch_size or (250 if device == "cpu" else 2_500)):
        generators = [torch.Generator().manual_seed(seed * _APART + int(i)) for i in chunk]
        x_T = torch.stack(
            [torch.randn(net.channels, size, size, generator=g) for g in generators]
        ).to(device)
        asked = None if y is None else y[chunk].to(device)
        eps_model = clip_x0(_guided(net, asked, guidance_scale), schedule)
        for step in tqdm(
            walk(eps_model, x_T, generator=generators), total=steps, leave=False, desc="sampling"
        ):
            x = step.x
        parts.append(x.cpu())
    return torch.cat(parts)


def check_sampling(
    model: Pretrained,
    steps: int,
    *,
    sampler: Sampler = "ddpm",
    eta: float | None = None,
    guidance_scale: float | None = None,
) -> None:
    """Whether generate() can sample so, before it does.

    Raises: UsageError if there are more steps than the chain has, the sampler is unknown, eta is
        given to one that has none, is negative, not finite or too large, or guidance_scale is
        not finite or the net has no null label; TypeError unless steps is int.
    """
    check_choice("sampler", sampler, Sampler)
    if sampler == "ddpm" and eta is not None:
        raise UsageError(f"eta = {eta}: the sampler 'ddpm' has no eta; choose 'ddim'")
    if guidance_scale is not None and model.net.classes is None:
        raise UsageError(
            f"guidance_scale = {guidance_scale}: this network was trained without labels, so it "
            "has no null label to be guided away from"
        )
    try:
        walk = _walk(sampler, eta, steps, model.schedule)
        walk(model.net, torch.empty(0))  # checks at the call, and runs when it is iterated
        if guidance_scale is not None:
            _guided(model.net, torch.zeros(1, dtype=torch.long), guidance_scale)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def _walk(sampler: Sampler, eta: float | None, steps: int, schedule: NoiseSchedule):
    """The sampler as a function of (eps_model, x_T, generator=...)."""
    grid: dict[str, Any] = {"times": timesteps(schedule.T, steps), "schedule": schedule}
    if sampler == "ddpm":
        return functools.partial(ddpm_sample, **grid)
    return functools.partial(ddim_sample, **grid, eta=0.0 if eta is None else eta)


def _guided(net: UNet, y: Tensor | None, guidance_scale: float | None) -> EpsModel:
    if guidance_scale is None:
        return condition(net, y)
    assert y is not None, "_check_labels has looked"
    return classifier_free_guidance(net, y, net.null_label, guidance_scale)


def _check_labels(y: Tensor | None, n: int, net: UNet, guidance_scale: float | None) -> None:
    if y is None and guidance_scale is not None:
        raise UsageError(f"guidance_scale = {guidance_scale} needs labels to guide towards")
    if y is not None and (y.shape != (n,) or y.dtype != torch.int64):
        raise UsageError(
            f"{len(y)} labels for n = {n} images: y has shape {tuple(y.shape)} and dtype "
            f"{y.dtype}, expected ({n},) and int64"
        )
    _guided(net, y, guidance_scale)  # checks at the call whether the net knows them


def _size(data: str) -> int:
    if data not in SIZES:
        raise UsageError(f"the size of the images of {data!r} is not known; known: {tuple(SIZES)}")
    return SIZES[data]
