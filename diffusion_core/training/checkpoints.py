"""The checkpoints of a training run: its whole state in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_core._validate import UsageError
from diffusion_core.files import (
    check_room,
    locked,
    read_metadata,
    read_safetensors,
    write_safetensors,
)

CHECKPOINT = "checkpoint.safetensors"
_WHY_STEPS = (
    ": the learning rate falls along a cosine that ends at the last step, so that each of its "
    "steps depends on their number, and a longer run is a new one"
)


@dataclass
class RunState:
    """A run at one moment: the net, the moving average of its weights, the optimizer,
    the steps done, and the log up to there (a dict a logged step)."""

    net: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    history: list[dict] = field(default_factory=list)


@contextmanager
def run_folder(
    folder: str | Path | None, resume: bool, state: RunState, settings: dict[str, Any], main: bool
) -> Iterator[Path | None]:
    """What can go wrong with a run's folder goes wrong here, before the first step. Inside,
    no other run writes there; a resumed run's state is that of its checkpoint.

    Returns: the path of the checkpoint; None without a folder.
    Raises: FileNotFoundError if there is nothing to resume, FileExistsError if there is a
        checkpoint and it is not to be resumed; BlockingIOError if another run is at work in
        the folder; OSError if nothing can be written there, or the disk is too full;
        ValueError as load_checkpoint, or if a run without a folder is to be resumed.
    """
    if folder is None:
        if resume:
            raise UsageError("resume=True needs the folder of the run that goes on")
        yield None
        return
    path = Path(folder) / CHECKPOINT
    if resume and not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: there is nothing to resume; name the run's folder, or begin "
            "one (without resume)"
        )
    with locked(folder) if main else nullcontext():
        if path.is_file() and not resume:
            raise FileExistsError(
                f"{path} holds a checkpoint; resume it (resume=True, --resume), or choose "
                "another folder"
            )
        if main:
            check_room(path, _bytes_needed(state))
        if resume:
            load_checkpoint(path, state, settings)
        yield path


def _bytes_needed(state: RunState) -> int:
    """A checkpoint's size: the net, its average, Adam's two moments, and the log."""
    net = sum(value.nbytes for value in state.net.state_dict().values())
    moments = 2 * sum(p.nbytes for p in state.net.parameters() if p.requires_grad)
    return 2 * net + moments + 2**20


def save_checkpoint(path: str | Path, state: RunState, settings: dict[str, Any]) -> None:
    """Write the whole state of a run to one file, atomically: after a crash the file is
    the old one or the new one, never a part. `settings` is what a resumed run must share
    (training.run_settings).

    Raises: OSError if it cannot be written; the previous file stays.
    """
    tensors = {f"net.{name}": value for name, value in state.net.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in state.average.state_dict().items()}
    for i, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in moments.items()
        }
    meta = {
        "step": str(state.step),
        "config": json.dumps(settings),
        "history": json.dumps(state.history),
    }
    write_safetensors(
        path,
        {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
        meta,
    )


def load_checkpoint(path: str | Path, state: RunState, settings: dict[str, Any]) -> None:
    """Put a run's state back in place: the weights, the optimizer's moments, the step and
    the log. `settings` are those of the run that goes on.

    Raises: ValueError if the file is damaged, or was written by a run with another
        configuration, other data, another schedule or another net; FileNotFoundError.
    """
    tensors, meta = read_safetensors(path)
    _check_meta(path, meta)
    _check_settings(path, json.loads(meta["config"]), json.loads(json.dumps(settings)))
    try:
        state.net.load_state_dict(_with_prefix(tensors, "net."))
        state.average.load_state_dict(_with_prefix(tensors, "ema."))
    except RuntimeError as error:
        raise UsageError(f"{path} belongs to another net: {error}") from error
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in _with_prefix(tensors, "optimizer.").items():
        i, name = key.split(".", 1)
        moments.setdefault(int(i), {})[name] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.step, state.history = int(meta["step"]), json.loads(meta["history"])


def steps_done(path: str | Path) -> int:
    """How many steps a checkpoint holds; its tensors are not read.

    Raises: FileNotFoundError; ValueError if it is damaged or no checkpoint.
    """
    meta = read_metadata(path)
    _check_meta(path, meta)
    return int(meta["step"])


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _check_settings(path: str | Path, saved: dict[str, Any], ours: dict[str, Any]) -> None:
    unknown = "not recorded"
    differs = [
        f"{key}: {saved.get(key, unknown)!r} there, {ours.get(key, unknown)!r} here"
        for key in ours | saved
        if saved.get(key, unknown) != ours.get(key, unknown)
    ]
    if differs:
        raise UsageError(
            f"{path} belongs to a run with another configuration ({'; '.join(differs)}); choose "
            f"another folder{_WHY_STEPS if saved.get('steps') != ours.get('steps') else ''}"
        )


def _check_meta(path: str | Path, meta: dict[str, str]) -> None:
    if not {"step", "config", "history"} <= meta.keys():
        raise UsageError(f"{path} is not a checkpoint of train(): it holds no step and no log")
