"""The same loop for any loss: what trains an autoencoder, a text-to-image model, an adapter."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_core._validate import UsageError
from diffusion_core.training.average import EMA
from diffusion_core.training.checkpoints import RunState, run_folder, save_checkpoint
from diffusion_core.training.config import TrainConfig, lr_at, resolve_precision
from diffusion_core.training.loop import TrainResult, elapsed
from diffusion_core.training.stopping import Watch, interruptible


def fit(
    net: nn.Module,
    loss_of_step: Callable[[int], Tensor],
    config: TrainConfig,
    *,
    lr_scales: dict[str, float] | None = None,
    settings: dict[str, Any] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    on_step: Callable[[int, float | None], None] | None = None,
) -> TrainResult:
    """Minimise a loss over the parameters of a net that want a gradient, on one device:
    Adam, the learning rate and the moving average of `config`. Of `config`, `label_dropout`
    and `p2_gamma` are the loss's own affair; `lr_scales` is a factor of the learning rate for
    the parameters whose names begin so.

    loss_of_step(k) is the loss of step k, a scalar: it draws from a generator of its own,
    seeded by k, so that a resumed run goes on as the first would have. With a folder, a
    checkpoint is written there every `checkpoint_every` steps and at the end, atomically;
    Ctrl-C writes one more, and raises KeyboardInterrupt. `settings` is what a resumed run
    must share with the first one, besides `config`.

    Returns: the net, its moving average, and the log (dicts with step, loss, seconds).
    Raises: as train, of diffusion_core.training: OSError, ValueError, NanLoss; ValueError for
        a factor that no parameter has.
    """
    device = next(net.parameters()).device.type
    config = dataclasses.replace(config, precision=resolve_precision(config.precision, device))
    learned = [p for p in net.parameters() if p.requires_grad]
    ema = EMA(net, config.ema_decay)
    groups = _groups(net, lr_scales or {})
    optimizer = torch.optim.Adam(groups, config.lr, config.betas, fused=True)
    state = RunState(net, ema.net, optimizer)
    shared = dataclasses.asdict(config) | (settings or {})
    with (
        run_folder(folder, resume, state, shared, main=True) as path,
        interruptible() as interrupted,
    ):
        watch, began = Watch(path), time.perf_counter() - elapsed(state.history)
        net.train()
        for k in range(state.step, config.steps):
            with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
                loss = loss_of_step(k)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(learned, config.grad_clip)
            for group in optimizer.param_groups:
                group["lr"] = group["scale"] * lr_at(k, config)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(net, k)
            state.step, value = k + 1, None
            watch.note(loss, norm)
            last, stop = state.step == config.steps, interrupted.is_set()
            if last or state.step % config.log_every == 0:
                watch.check(state)
                value = loss.item()
                seconds = round(time.perf_counter() - began, 2)
                state.history.append({"step": state.step, "loss": round(value, 6)})
                state.history[-1]["seconds"] = seconds
            if path is not None and (last or stop or state.step % config.checkpoint_every == 0):
                watch.check(state)
                save_checkpoint(path, state, shared)
            if on_step is not None:
                on_step(state.step, value)
            if stop:
                raise KeyboardInterrupt
    return TrainResult(net.eval(), ema.net, state.history)


def _groups(net: nn.Module, scales: dict[str, float]) -> list[dict[str, Any]]:
    """The parameters that want a gradient, those of one factor together."""
    unused = [
        start
        for start in scales
        if not any(name.startswith(start) for name, _ in net.named_parameters())
    ]
    if unused:
        raise UsageError(f"lr_scales: no parameter's name begins with {', '.join(unused)}")
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            scale = next((s for start, s in scales.items() if name.startswith(start)), 1.0)
            groups.setdefault(scale, []).append(parameter)
    return [{"params": members, "scale": scale} for scale, members in groups.items()]
