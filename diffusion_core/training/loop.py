"""Training of any net(x, t, y): one function of the step number, so that it can be
resumed and split over processes exactly."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from diffusion_core._validate import UsageError, check_labels
from diffusion_core.data import Images
from diffusion_core.schedules import NoiseSchedule
from diffusion_core.training.average import EMA
from diffusion_core.training.batches import batch_loss, batches
from diffusion_core.training.checkpoints import RunState, run_folder, save_checkpoint
from diffusion_core.training.config import TrainConfig, lr_at, resolve_precision, run_settings
from diffusion_core.training.processes import (
    dropout_seeded,
    find_place,
    mean_over_processes,
    together,
    wait_for_all,
)
from diffusion_core.training.stopping import Watch, interruptible
from diffusion_core.training.validation import validation_loss


class TrainResult(NamedTuple):
    """net: the last weights; ema: their moving average, the one to sample from;
    history: one dict a logged step."""

    net: nn.Module
    ema: nn.Module
    history: list[dict]


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
    on_step: Callable[[int, float | None], None] | None = None,
) -> TrainResult:
    """Train a noise predictor net(x_t, t, y) with DDPM's simple loss, each t weighted by
    p2_weights.

    Equation: DDPM eq. 14 on minibatches, times p2_weights(t); Adam; labels dropped as in
        Ho & Salimans 2022, alg. 1. Step k's random numbers depend on (seed, k) alone and
        are drawn for the global batch: a run resumed from a checkpoint, and a run on
        several processes (`torchrun`, `accelerate launch`), follow the same path (but for
        the masks of dropout, which each process draws for itself). With a folder, a
        checkpoint is written there every `checkpoint_every` steps and at the end:
        atomically, as safetensors with its log inside. Ctrl-C ends the step, writes one
        more, and raises KeyboardInterrupt.

    Shapes: data.pixels (N, C, H, W) uint8; data.labels (N,), 0..K-1, used if the net has
        K classes. on_step(steps done, loss) is called after each step; the loss is a
        number at the logged steps, and None between them: to read it is to wait for the
        device.
    Returns: the net, its moving average, and the log (dicts with step, loss as it is
        weighted, and at validations loss_by_t, not weighted: ten means over tenths of
        1..T, of the moving average, with fixed noise).
    Raises: ValueError if there is no image, a label is out of range, the batch does not
        split over the processes, the device is not available, or a checkpoint was written
        with another configuration, data, schedule or net; before the first step, an
        OSError as run_folder says it; later, OSError if a checkpoint cannot be written
        (the previous one stays); NanLoss if the loss, its gradient or a weight stopped
        being finite: it names the step, and is raised when the log or a checkpoint is
        next due. What a checkpoint holds is finite.
    """
    _check_images(net, data, validation)
    config = dataclasses.replace(config, precision=resolve_precision(config.precision, device))
    place = find_place(device)
    net = net.to(place.device)
    ema = EMA(net, config.ema_decay)
    optimizer = torch.optim.Adam(net.parameters(), config.lr, config.betas, fused=True)
    state = RunState(net, ema.net, optimizer)
    settings = {} if folder is None else run_settings(config, data, schedule)
    with (
        run_folder(folder, resume, state, settings, place.is_main) as path,
        interruptible() as interrupted,
    ):
        model, watch = together(net, place), Watch(path)
        data = Images(data.pixels.to(place.device), data.labels.to(place.device))
        began = time.perf_counter() - elapsed(state.history)
        for k, batch in batches(state.step, config, data, schedule, place):
            model.train()
            with dropout_seeded(k, config.seed, place):
                loss = batch_loss(model, net, data, batch, schedule, config)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(net.parameters(), config.grad_clip)
            for group in optimizer.param_groups:
                group["lr"] = lr_at(k, config)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(net, k)

            state.step, mean_loss = k + 1, None
            watch.note(loss, norm)
            if _due(config.log_every, state.step, config):
                watch.check(state)
                mean_loss = mean_over_processes(loss.detach(), place)
            _log(state, mean_loss, time.perf_counter() - began, validation, schedule, config)
            stop = interrupted.is_set()
            if stop or _due(config.checkpoint_every, state.step, config):
                watch.check(state)
                if path is not None and place.is_main:
                    save_checkpoint(path, state, settings)
            if on_step is not None and place.is_main:
                on_step(state.step, mean_loss)
            if stop:
                raise KeyboardInterrupt
        wait_for_all(place)
    return TrainResult(net.eval(), ema.net, state.history)


def elapsed(history: list[dict]) -> float:
    """Seconds of training up to a run's last logged step, all its parts together; 0 for an
    empty log."""
    return next((row["seconds"] for row in reversed(history) if "seconds" in row), 0.0)


def _check_images(net: nn.Module, data: Images, validation: Images | None) -> None:
    classes = getattr(net, "classes", None)
    for name, images in (("data", data), ("validation", validation)):
        if images is None:
            continue
        if not len(images.pixels):
            raise UsageError(f"{name} holds no images")
        if classes is not None:
            check_labels(images.labels, classes, len(images.pixels), f"the labels of {name}")


def _due(every: int, done: int, config: TrainConfig) -> bool:
    return done % every == 0 or done == config.steps


def _log(
    state: RunState,
    mean_loss: float | None,
    seconds: float,
    validation: Images | None,
    schedule: NoiseSchedule,
    config: TrainConfig,
) -> None:
    """Add a row to the log, if the loss was read or a validation is due."""
    done = state.step
    row: dict[str, Any] = {}
    if mean_loss is not None:
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
