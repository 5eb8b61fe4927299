"""Training of any net(x, t, y): one function of the step number, so that it can be
resumed and split over processes exactly."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_core._validate import check_device
from diffusion_core.data import Images, from_uint8
from diffusion_core.ddpm import eps_loss
from diffusion_core.schedules import NoiseSchedule
from diffusion_core.training.average import EMA
from diffusion_core.training.checkpoints import (
    CHECKPOINT,
    RunState,
    load_checkpoint,
    save_checkpoint,
    steps_done,
)
from diffusion_core.training.config import (
    Precision,
    TrainConfig,
    lr_at,
    resolve_precision,
    run_settings,
)

_CHUNK = 128  # images that validation sends through the net at a time
_FAR = 2_654_435_769  # between the seeds of processes; a CPU's generator keeps 32 bits of a seed


class Batch(NamedTuple):
    """What step k draws, for the global batch, on the CPU. Shapes: (B,); of eps
    (B, C, H, W)."""

    index: Tensor
    t: Tensor
    eps: Tensor
    dropped: Tensor


class TrainResult(NamedTuple):
    """net: the last weights; ema: their moving average, the one to sample from;
    history: one dict a logged step."""

    net: nn.Module
    ema: nn.Module
    history: list[dict]


class NanLoss(FloatingPointError):
    """The loss or its gradient stopped being finite."""


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


def draw_batch(k: int, config: TrainConfig, n: int, shape: torch.Size, T: int) -> Batch:
    """All random numbers of step k for the global batch, from a generator seeded by
    (seed, k) alone.

    Shapes: n images of this shape (C, H, W); t on 1..T.
    """
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + k)
    B = config.batch_size
    return Batch(
        index=torch.randint(0, n, (B,), generator=generator),
        t=torch.randint(1, T + 1, (B,), generator=generator),
        eps=torch.randn(B, *shape, generator=generator),
        dropped=torch.rand(B, generator=generator) < config.label_dropout,
    )


def train(
    net: nn.Module,
    data: Images,
    schedule: NoiseSchedule,
    config: TrainConfig,
    *,
    validation: Images | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train a noise predictor net(x_t, t, y) with DDPM's simple loss, each t weighted by
    p2_weights.

    Equation: DDPM eq. 14 on minibatches, times p2_weights(t); Adam; labels dropped as in
        Ho & Salimans 2022, alg. 1. Step k's random numbers depend on (seed, k) alone and
        are drawn for the global batch: a run resumed from a checkpoint, and a run on
        several processes (`accelerate launch`), follow the same path (but for the masks
        of dropout, which each process draws for itself). With a folder, a checkpoint is
        written there every `checkpoint_every` steps and at the end: atomically, as
        safetensors with its log inside.

    Shapes: data.pixels (N, C, H, W) uint8; data.labels (N,), used if the net has
        classes.
    Returns: the net, its moving average, and the log (dicts with step, loss as it is
        weighted, and at validations loss_by_t, not weighted: ten means over tenths of
        1..T, of the moving average, with fixed noise).
    Raises: ValueError if the batch does not split over the processes, the device is not
        available, or a checkpoint was written with another configuration, data,
        schedule or net; FileExistsError if the folder holds a checkpoint and resume is
        False; NanLoss at the step where the loss or its gradient stops being finite
        (the last checkpoint stays); OSError if a checkpoint cannot be written (the
        previous one stays).
    """
    config = dataclasses.replace(config, precision=resolve_precision(config.precision, device))
    accelerator = _accelerator(config.precision, device)
    rows = _my_rows(config.batch_size, accelerator)
    net = net.to(accelerator.device)
    ema = EMA(net, config.ema_decay)
    optimizer = torch.optim.Adam(net.parameters(), config.lr, config.betas, fused=True)
    path = None if folder is None else Path(folder) / CHECKPOINT
    settings = {} if path is None else run_settings(config, data, schedule)
    with _prepared(net, optimizer, accelerator) as (model, optimizer):
        state = RunState(net, ema.net, optimizer)
        _resume(path, resume, state, settings)
        data = Images(data.pixels.to(accelerator.device), data.labels.to(accelerator.device))
        began = time.perf_counter() - elapsed(state.history)
        for k in range(state.step, config.steps):
            model.train()
            drawn = draw_batch(k, config, len(data.pixels), data.pixels.shape[1:], schedule.T)
            with _dropout_seeded(k, config, accelerator):
                loss = _loss(model, net, data, Batch(*(a[rows] for a in drawn)), schedule, config)
            mean_loss = _mean_over_processes(loss, accelerator)
            _stop_unless_finite("loss", mean_loss, k, path)
            norm = _gradient(loss, model, config, accelerator)
            _stop_unless_finite("norm of the gradient", norm, k, path)
            _update(k, optimizer, config)
            ema.update(net, k)
            state.step = k + 1
            _log(state, mean_loss, time.perf_counter() - began, validation, schedule, config)
            if accelerator.is_main_process:
                if path is not None and _due(config.checkpoint_every, state.step, config):
                    save_checkpoint(path, state, settings)
                if on_step is not None:
                    on_step(state.step, mean_loss)
        accelerator.wait_for_everyone()
    return TrainResult(net.eval(), ema.net, state.history)


@contextmanager
def _prepared(net: nn.Module, optimizer: torch.optim.Optimizer, accelerator):
    """Net and optimizer as Accelerate runs them. Afterwards, also if training stops with an
    error, the net is without autocast again."""
    model, optimizer = accelerator.prepare(net, optimizer)
    try:
        yield model, optimizer
    finally:
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)


def elapsed(history: list[dict]) -> float:
    """Seconds of training up to a run's last logged step, all its parts together; 0 for an
    empty log."""
    return next((row["seconds"] for row in reversed(history) if "seconds" in row), 0.0)


def _resume(path: Path | None, resume: bool, state: RunState, settings: dict[str, Any]) -> None:
    """Go on from the checkpoint, if there is one."""
    if path is None or not path.exists():
        return
    if not resume:
        raise FileExistsError(
            f"{path} holds a checkpoint; resume it (resume=True, --resume), or choose "
            "another folder"
        )
    load_checkpoint(path, state, settings)


def _gradient(loss: Tensor, model: nn.Module, config: TrainConfig, accelerator) -> float:
    """The loss's gradient, clipped in place.

    Returns: its norm before.
    """
    accelerator.backward(loss)
    return accelerator.clip_grad_norm_(model.parameters(), config.grad_clip).item()


def _update(k: int, optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
    """Step k of the optimizer, at the step's learning rate; then no gradient is left."""
    for group in optimizer.param_groups:
        group["lr"] = lr_at(k, config)
    optimizer.step()
    optimizer.zero_grad()


def _stop_unless_finite(name: str, value: float, k: int, path: Path | None) -> None:
    if math.isfinite(value):
        return
    kept = ""
    if path is not None and path.exists():
        kept = f"; {path} still holds step {steps_done(path)}"
    raise NanLoss(
        f"the {name} became {value} at step {k}{kept}. Try a lower lr, a smaller grad_clip, or "
        "precision='fp32'"
    )


def _due(every: int, done: int, config: TrainConfig) -> bool:
    return done % every == 0 or done == config.steps


def _log(
    state: RunState,
    mean_loss: float,
    seconds: float,
    validation: Images | None,
    schedule: NoiseSchedule,
    config: TrainConfig,
) -> None:
    """Add a row to the log, if one is due after this step."""
    done, row = state.step, {}
    if _due(config.log_every, done, config):
        row |= {
            "loss": round(mean_loss, 6),
            "images_per_s": round(done * config.batch_size / seconds, 1),
            "seconds": round(seconds, 2),
        }
    if validation is not None and _due(config.validate_every, done, config):
        losses = validation_loss(state.average, validation, schedule)
        row |= {"loss_by_t": [round(v, 6) for v in losses]}
    if row:
        state.history.append({"step": done} | row)


def _accelerator(precision: Precision, device: str | None):
    """Accelerate's handle on devices and processes, chosen anew for each run; precision
    as resolve_precision gives it.

    Accelerate keeps one state for the whole program: without the reset, a second run
    could neither change its precision nor its device.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        AcceleratorState._reset_state(reset_partial_state=True)
    wanted = None if device is None else check_device(device)
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no", cpu=device == "cpu"
    )
    there = accelerator.device
    if wanted is not None and (wanted.type, wanted.index or 0) != (there.type, there.index or 0):
        raise ValueError(
            f"device = {device!r}: training would run on {there}; choose {there.type!r}, and the "
            "GPU with the environment variable CUDA_VISIBLE_DEVICES"
        )
    return accelerator


def _my_rows(batch_size: int, accelerator) -> slice:
    """This process's share of the global batch."""
    n, rank = accelerator.num_processes, accelerator.process_index
    if batch_size % n:
        raise ValueError(f"batch_size = {batch_size} does not split evenly over {n} processes")
    return slice(rank * batch_size // n, (rank + 1) * batch_size // n)


def _loss(
    model: nn.Module,
    net: nn.Module,
    data: Images,
    batch: Batch,
    schedule: NoiseSchedule,
    config: TrainConfig,
) -> Tensor:
    """DDPM eq. 14 on one batch, each t with its weight, with the labels that were not
    dropped; net says what its labels are, model is net as Accelerate runs it."""
    index = batch.index.to(data.pixels.device)
    x_0, y = from_uint8(data.pixels[index]), None
    if getattr(net, "classes", None) is not None:
        y = data.labels[index].masked_fill(batch.dropped.to(index.device), net.null_label)
    losses = eps_loss(lambda x, t: model(x, t, y), x_0, batch.t, batch.eps.to(x_0), schedule)
    return (p2_weights(schedule, batch.t, config.p2_gamma).to(losses) * losses).mean()


@contextmanager
def _dropout_seeded(k: int, config: TrainConfig, accelerator):
    """Layers like dropout draw from torch's global generator: for step k it starts
    anew, on each process elsewhere, so that a resumed run draws the same; afterwards it
    is as before."""
    device, process = accelerator.device, accelerator.process_index
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((config.seed * 1_000_003 + k + (process + 1) * _FAR) % 2**32)
        yield


def _mean_over_processes(loss: Tensor, accelerator) -> float:
    return accelerator.gather(loss.detach().reshape(1)).mean().item()


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
                (lambda x, t, y=labels: net(x, t, y)) if has_labels else net,
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
