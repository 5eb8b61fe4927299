"""Shared pieces of the tests. GPUs are hidden, so that every machine runs the same tests."""

import os
import signal

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import torch

from diffusion_core.exact import GaussianMixture
from diffusion_core.networks import UNet
from diffusion_core.pretrained import Pretrained
from diffusion_core.schedules import (
    NoiseSchedule,
    cosine_betas,
    linear_betas,
    make_schedule,
    scaled_linear_betas,
)

SCHEDULES = {
    "linear": NoiseSchedule.from_betas(linear_betas()),
    "scaled_linear": NoiseSchedule.from_betas(scaled_linear_betas()),
    "cosine": NoiseSchedule.from_betas(cosine_betas()),
}


@pytest.fixture(autouse=True, scope="session")
def ctrl_c() -> None:
    """As in a terminal: a shell that starts the tests in the background lets them ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=SCHEDULES)
def schedule(request) -> NoiseSchedule:
    return SCHEDULES[request.param]


@pytest.fixture
def linear() -> NoiseSchedule:
    return SCHEDULES["linear"]


@pytest.fixture
def mixture() -> GaussianMixture:
    """Three unequal components in 2-D."""
    return GaussianMixture(
        torch.tensor([0.5, 0.3, 0.2]),
        torch.tensor([[-0.8, 0.2], [0.7, 0.6], [0.1, -0.9]]),
        torch.tensor([0.1, 0.2, 0.05]),
    )


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Seeded float64 normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(classes=3):
    """A small net with random weights, as if it had been trained on the digits."""
    torch.manual_seed(0)
    net = UNet(width=8, multipliers=(1,), attention=(False,), classes=classes).eval()
    torch.nn.init.normal_(net.conv_out.weight, std=0.1)
    return Pretrained(net, make_schedule("linear"), {"data": {"name": "digits"}})
