"""What a training run depends on besides the net, the data and the schedule."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffusion_core._validate import UsageError, check_whole
from diffusion_core.data import Images
from diffusion_core.schedules import NoiseSchedule

Precision = Literal["auto", "bf16", "fp32"]
_WHOLE = {"steps": 1, "batch_size": 1, "warmup": 0, "seed": 0} | dict.fromkeys(
    ("log_every", "validate_every", "checkpoint_every"), 1
)  # the least value of each field of TrainConfig that counts something


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on besides the net, the data and the schedule.

    Raises: ValueError naming the field that is out of range; TypeError for one that must
        be int and is not.
    """

    steps: int = 2_000
    batch_size: int = 128  # of all processes together
    lr: float = 1e-3  # at the end of the warm-up; falls to 0 along a half cosine
    warmup: int = 100  # steps
    betas: tuple[float, float] = (0.9, 0.99)  # of Adam
    grad_clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.999
    label_dropout: float = (
        0.1  # chance that a label becomes the null label (Ho & Salimans 2022, alg. 1)
    )
    p2_gamma: float = 0.0  # of p2_weights; 0 is DDPM's simple loss
    precision: Precision = "auto"  # of the network's autocast; weights and loss stay float32
    seed: int = 0
    log_every: int = 50  # steps
    validate_every: int = 500
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name, least in _WHOLE.items():
            check_whole(name, getattr(self, name), least)
        betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        for name, fine, right in (
            ("lr", 0 < self.lr < math.inf, "above 0 and finite"),
            ("betas", betas, "two numbers in [0, 1)"),
            ("grad_clip", self.grad_clip > 0, "above 0"),
            ("ema_decay", 0 <= self.ema_decay < 1, "in [0, 1)"),
            ("label_dropout", 0 <= self.label_dropout <= 1, "in [0, 1]"),
            ("p2_gamma", 0 <= self.p2_gamma < math.inf, "at least 0 and finite"),
            ("precision", self.precision in get_args(Precision), f"one of {get_args(Precision)}"),
            ("seed", self.seed < 2**32, "below 2**32"),
        ):
            if not fine:
                raise UsageError(f"{name} = {getattr(self, name)!r} must be {right}")


def lr_at(k: int, config: TrainConfig) -> float:
    """Learning rate of step k: a linear warm-up, then half a cosine down to 0.

    Equation: lr min(1, (k + 1) / warmup) (1 + cos(pi k / steps)) / 2.
    """
    warm = min(1.0, (k + 1) / config.warmup) if config.warmup else 1.0
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * k / config.steps))


def seed_of_step(seed: int, k: int) -> int:
    """The seed of all random numbers of step k: a step can be repeated without those before it.

    Equation: 1000003 seed + k. A CPU's generator keeps 32 bits of it, which differ for all
        seeds below 4294 and steps below 1000003.
    """
    return seed * 1_000_003 + k


def generator_of_step(seed: int, k: int) -> torch.Generator:
    """A new generator, on the CPU, seeded by seed_of_step."""
    return torch.Generator().manual_seed(seed_of_step(seed, k))


def resolve_precision(precision: Precision, device: str | None = None) -> Precision:
    """What "auto" means on this machine: "bf16" where the hardware multiplies bfloat16
    matrices faster than float32 ones, else "fp32". The others stay as they are."""
    if precision == "auto":
        return "bf16" if _has_bf16(device) else "fp32"
    return precision


def _has_bf16(device: str | None) -> bool:
    """Whether the hardware multiplies bfloat16 matrices faster than float32 ones."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (
        torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and _cpu_has_bf16_units()
    )


def _cpu_has_bf16_units() -> bool:
    return (
        getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        or torch.cpu._is_amx_tile_supported()
    )


def run_settings(config: TrainConfig, data: Images, schedule: NoiseSchedule) -> dict[str, Any]:
    """What a resumed run must share with the one that was stopped, besides the net.

    Returns: the fields of the configuration, and under "data" and "schedule" hashes of
        images with labels and of alpha_bar, 16 hexadecimal digits each (of alpha_bar
        the first 12 decimals count: the last bits differ between machines).
    """
    return dataclasses.asdict(config) | {
        "data": _digest(data.pixels, data.labels),
        "schedule": _digest((schedule.alpha_bar * 1e12).round().long()),
    }


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]
