"""What `python -m diffusion_core train NAME` trains: data, net, schedule and
configuration under one name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from diffusion_core.data import Name
from diffusion_core.networks import UNet
from diffusion_core.schedules import NoiseSchedule, ScheduleName, make_schedule
from diffusion_core.training.config import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """One training run. `net` holds the arguments of UNet; `schedule` is "linear" or
    "cosine", with T = 1000; `stored_as` is the precision of the weight file alone."""

    about: str
    data: Name
    net: dict[str, Any]
    schedule: ScheduleName
    config: TrainConfig
    validation_images: int = 256
    licence: str = field(default="MIT")
    stored_as: torch.dtype = torch.float32

    def build(self) -> tuple[UNet, NoiseSchedule]:
        """An untrained net and its schedule."""
        return UNet(**self.net), make_schedule(self.schedule)


_DIGITS_NET = {
    "width": 16,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (False, True),
    "classes": 10,
}
_MNIST_NET = {
    "width": 32,
    "multipliers": (1, 2, 4),
    "blocks": 1,
    "attention": (False, False, True),
    "classes": 10,
}

RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        about="8x8 digits, live in the chapters: under a minute on two CPU cores",
        data="digits",
        net=_DIGITS_NET,
        schedule="linear",
        config=TrainConfig(
            steps=400,
            batch_size=64,
            lr=2e-3,
            ema_decay=0.995,
            precision="fp32",  # so small a net gains nothing from bf16
            log_every=20,
            validate_every=100,
        ),
        validation_images=100,
    ),
    "mnist": Recipe(
        about="28x28 MNIST, class-conditional: the network of the book",
        data="mnist",
        net=_MNIST_NET,
        schedule="linear",
        config=TrainConfig(steps=9_000, batch_size=64, lr=1.5e-3, warmup=500, ema_decay=0.999),
        stored_as=torch.float16,  # half the file; the samples differ by rounding only
    ),
}
