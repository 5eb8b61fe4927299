"""Files that survive a crash: tensors as safetensors, written atomically, and the
checkpoints of a training run made of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class RunState:
    """A run at one moment: the net, the moving average of its weights, the optimizer,
    the steps done, and the log up to there (a dict a logged step)."""

    net: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    history: list[dict] = field(default_factory=list)


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
    save_safely(
        {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
        path,
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
        raise ValueError(f"{path} belongs to another net: {error}") from error
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
    with _opened(path) as file:
        meta = file.metadata() or {}
    _check_meta(path, meta)
    return int(meta["step"])


def save_safely(tensors: dict[str, Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """safetensors' save_file, atomically: to a temporary file beside it, flushed to the
    disk, then renamed.

    Raises: OSError saying how much room is needed, if the file cannot be written; the
        previous file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file(tensors, temporary, metadata)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        need = sum(a.numel() * a.element_size() for a in tensors.values()) / 2**20
        free = shutil.disk_usage(path.parent).free / 2**20
        raise OSError(
            f"{path} could not be written ({error}); it needs {need:.0f} MiB, {free:.0f} MiB are "
            "free. The previous file is kept."
        ) from error


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Nothing in it is ever executed.

    Raises: FileNotFoundError; ValueError if it is truncated or no safetensors file.
    """
    with _opened(path) as file:
        names = list(file.keys())  # clones: what get_tensor gives is the file itself, mapped
        tensors = {name: file.get_tensor(name).clone() for name in names}
        return tensors, file.metadata() or {}


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """safetensors' handle on a file; raises as read_safetensors."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}); fetch or train it again"
        ) from error


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
        raise ValueError(
            f"{path} belongs to a run with another configuration ({'; '.join(differs)}); choose "
            "another folder"
        )


def _check_meta(path: str | Path, meta: dict[str, str]) -> None:
    if not {"step", "config", "history"} <= meta.keys():
        raise ValueError(f"{path} is not a checkpoint of train(): it holds no step and no log")
