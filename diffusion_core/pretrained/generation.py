"""Images from trained weights: many at once, each with a generator of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_core._validate import check_device, check_whole
from diffusion_core.data import SIZES
from diffusion_core.ddpm import ddpm_sample
from diffusion_core.prediction import EpsModel, clip_x0
from diffusion_core.pretrained.loading import Pretrained
from diffusion_core.schedules import timesteps


def generate(
    model: Pretrained,
    y: Tensor | None,
    n: int,
    steps: int,
    seed: int,
    device: str,
    batch_size: int | None = None,
) -> Tensor:
    """n images along a strided chain, x_0 clipped to [-1, 1]: (n, C, H, W) on the CPU. Image i has
    a generator of its own.

    Raises: ValueError if y does not hold n labels, n is not positive, the seed is not in
        0..2^32 - 1, the device is not available, or the card names unknown data; TypeError unless
        n and seed are int.
    """
    check_whole("n", n, 1)
    check_whole("seed", seed, 0)
    if seed >= 2**32:
        raise ValueError(f"seed = {seed} must be less than 2**32")
    check_device(device)
    if y is not None and len(y) != n:
        raise ValueError(f"{len(y)} labels for n = {n} images")
    net, schedule = model.net.to(device), model.schedule
    data = model.card["data"]["name"]
    if data not in SIZES:
        raise ValueError(f"the size of the images of {data!r} is not known; known: {tuple(SIZES)}")
    size = SIZES[data]
    times, parts = timesteps(schedule.T, steps), []
    for chunk in torch.arange(n).split(batch_size or (250 if device == "cpu" else 2_500)):
        generators = [torch.Generator().manual_seed(seed * 1_000_000 + int(i)) for i in chunk]
        x_T = torch.stack(
            [torch.randn(net.channels, size, size, generator=g) for g in generators]
        ).to(device)
        eps_model = clip_x0(labelled(net, None if y is None else y[chunk].to(device)), schedule)
        for step in tqdm(
            ddpm_sample(eps_model, x_T, times, schedule, generator=generators),
            total=steps,
            leave=False,
            desc="sampling",
        ):
            x = step.x
        parts.append(x.cpu())
    return torch.cat(parts)


def labelled(net: nn.Module, y: Tensor | None) -> EpsModel:
    """The net as a function of (x, t) alone, which asks for the labels y."""
    return lambda x, t: net(x, t, y)
