"""What a step of training draws, and its loss."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from diffusion_core.data import Images, from_uint8
from diffusion_core.ddpm import eps_loss
from diffusion_core.schedules import NoiseSchedule, expand
from diffusion_core.training.config import TrainConfig, generator_of_step
from diffusion_core.training.processes import Place


class Batch(NamedTuple):
    """What step k draws, for the global batch, on the CPU. Shapes: (B,); of eps
    (B, C, H, W)."""

    index: Tensor  # type: ignore[assignment]  # not the method of tuples
    t: Tensor
    eps: Tensor
    dropped: Tensor


def draw_batch(k: int, config: TrainConfig, n: int, shape: torch.Size, T: int) -> Batch:
    """All random numbers of step k for the global batch, from a generator seeded by
    (seed, k) alone.

    Shapes: n images of this shape (C, H, W); t on 1..T.
    """
    generator = generator_of_step(config.seed, k)
    B = config.batch_size
    return Batch(
        index=torch.randint(0, n, (B,), generator=generator),
        t=torch.randint(1, T + 1, (B,), generator=generator),
        eps=torch.randn(B, *shape, generator=generator),
        dropped=torch.rand(B, generator=generator) < config.label_dropout,
    )


def batches(
    first: int, config: TrainConfig, data: Images, schedule: NoiseSchedule, place: Place
) -> Iterator[tuple[int, Batch]]:
    """The steps from `first` on, each with this process's part of its batch. A second
    thread draws the next one while the device works on this one."""
    rows, n, shape = place.rows(config.batch_size), len(data.pixels), data.pixels.shape[1:]

    def part(k: int) -> Batch:
        drawn = Batch(*(a[rows] for a in draw_batch(k, config, n, shape, schedule.T)))
        if place.device.type == "cuda":  # from pinned memory the device fetches without a wait
            return Batch(*(a.pin_memory() for a in drawn))
        return drawn

    with ThreadPoolExecutor(1) as drawing:
        ahead = drawing.submit(part, first)
        for k in range(first, config.steps):
            batch = ahead.result()
            if k + 1 < config.steps:
                ahead = drawing.submit(part, k + 1)
            yield k, batch


def batch_loss(
    model: nn.Module,
    net: nn.Module,
    data: Images,
    batch: Batch,
    schedule: NoiseSchedule,
    config: TrainConfig,
) -> Tensor:
    """DDPM eq. 14 on one batch, each t with its weight, with the labels that were not
    dropped; net says what its labels are, model is net as the loop calls it.

    Nothing in it waits for a GPU: labels are checked before the loop, the times stay on
    the CPU, and the net gets a copy of them.
    """
    device, half = data.pixels.device, config.precision == "bf16"
    index, times, eps, dropped = (_moved(a, device) for a in batch)
    x_0, y = from_uint8(data.pixels[index]), None
    if getattr(net, "classes", None) is not None:
        y = data.labels[index].masked_fill(dropped, cast(int, net.null_label))

    def eps_model(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return model(x, times, y).to(x.dtype)

    losses = eps_loss(eps_model, x_0, batch.t, eps, schedule)
    return (expand(p2_weights(schedule, batch.t, config.p2_gamma), losses) * losses).mean()


def p2_weights(schedule: NoiseSchedule, t: Tensor, gamma: float) -> Tensor:
    """What the noise predictor's loss at t counts, with less weight on the times of little
    noise, where errors are large but hardly seen.

    Equation: Choi et al. 2022 ("P2 weighting"), the factor lambda'_t / lambda_t of eq. 8
        with k = 1,

            w_t = 1 / (1 + SNR(t))^gamma = (1 - alpha_bar_t)^gamma
    Shapes: t (B,) -> (B,).
    Returns: float64 on the CPU.
    Raises: ValueError outside 0 <= t <= T; TypeError for half-precision t.
    """
    return (1 - schedule.alpha_bar_at(t)) ** gamma


def _moved(a: Tensor, device: torch.device) -> Tensor:
    return a.to(device, non_blocking=device.type == "cuda")
