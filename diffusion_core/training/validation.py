"""The loss on images that are not trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from diffusion_core.data import Images, from_uint8
from diffusion_core.ddpm import eps_loss
from diffusion_core.prediction import EpsModel
from diffusion_core.schedules import NoiseSchedule

_CHUNK = 128  # images that validation sends through the net at a time


@torch.no_grad()
def validation_loss(
    net: nn.Module, data: Images, schedule: NoiseSchedule, buckets: int = 10, draws: int = 1
) -> list[float]:
    """The loss in each bucket of t, unconditional of any label drop: true labels, fixed
    images, fixed t, fixed noise.

    Equation: DDPM eq. 14, per element, averaged over the t of one bucket; the buckets
        are equal parts of 1..T.
    Shapes: data (N, C, H, W); each bucket sees `draws` values of t, spread evenly over
        it, for every image.
    Returns: `buckets` numbers.
    """
    device = next(net.parameters()).device
    generator = torch.Generator().manual_seed(20200619)
    x_0, y = from_uint8(data.pixels).to(device), data.labels.to(device)
    eps = torch.randn(x_0.shape, generator=generator).to(device)
    has_labels = getattr(net, "classes", None) is not None
    width = schedule.T / buckets
    means = []
    for b in range(buckets):
        times = [math.ceil((b + (d + 0.5) / draws) * width) for d in range(draws)]
        losses = [
            eps_loss(
                _with_labels(net, labels) if has_labels else net,
                images,
                torch.full((len(images),), t),
                noise,
                schedule,
            )
            for t in times
            for images, labels, noise in zip(
                x_0.split(_CHUNK), y.split(_CHUNK), eps.split(_CHUNK), strict=True
            )
        ]
        means.append(torch.cat(losses).mean().item())
    return means


def _with_labels(net: nn.Module, y: Tensor) -> EpsModel:
    return lambda x, t: net(x, t, y)
