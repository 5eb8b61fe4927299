"""Files that survive a crash: written whole or not at all, never pickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffusion_core._validate import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def write_bytes(path: str | Path, data: bytes) -> None:
    """The one atomic writer: to PATH.tmp beside it, flushed to the disk, then renamed. What
    an interrupted writer left there is overwritten; the mode is that of any new file.

    Raises: OSError saying how much room is needed, if the file cannot be written; the
        previous file stays.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary.is_file():
            temporary.unlink()
        raise OSError(
            f"{path} could not be written ({error}); it needs {len(data) / 2**20:.1f} MiB"
            f"{_free(path.parent)}. A previous file is kept."
        ) from error


def _free(folder: Path) -> str:
    try:
        return f", {shutil.disk_usage(folder).free / 2**20:.1f} MiB are free"
    except OSError:
        return ""


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep every other process that asks for it out of this folder, which is made if need
    be. The lock is the operating system's: it leaves no file, and goes with the process,
    however that ends. Where the system has none (Windows, some network disks), nobody is
    kept out.

    Raises: OSError if the folder cannot be made; BlockingIOError if another process holds it.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        handle = None if fcntl is None else os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OSError(f"{folder} cannot be used ({error}); choose another folder") from error
    if handle is None:
        yield
        return
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: str | Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            f"another run is at work in {folder}; wait for its end, or choose another folder"
        ) from error
    except OSError:
        return  # a disk without locks


def check_room(path: str | Path, size: int) -> None:
    """See, before the work that fills it, whether a file of so many bytes can be written
    beside the one that it will replace; its folder is there.

    Raises: OSError saying what is in the way.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.touch()
        temporary.unlink()
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise OSError(f"{path} could not be written ({error}); choose another folder") from error
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; move it away, or choose another folder")
    if free < size:
        raise OSError(
            f"{path} needs {size / 2**20:.1f} MiB{_free(path.parent)}; make room, or choose "
            "another folder"
        )


def write_safetensors(
    path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """Tensors and metadata as one safetensors file, atomically.

    Raises: OSError as write_bytes.
    """
    write_bytes(path, save(tensors, metadata))


def write_json(path: str | Path, value: dict[str, Any]) -> None:
    """JSON, atomically.

    Raises: OSError as write_bytes.
    """
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Nothing in it is ever executed.

    Raises: FileNotFoundError; PermissionError; UsageError if it is truncated or no
        safetensors file.
    """
    with _opened(path) as file:
        names = list(file.keys())  # clones: what get_tensor gives is the file itself, mapped
        tensors = {name: file.get_tensor(name).clone() for name in names}
        return tensors, file.metadata() or {}


def read_metadata(path: str | Path) -> dict[str, str]:
    """Only the metadata of a safetensors file; raises as read_safetensors."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """safetensors' handle on a file; raises as read_safetensors."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path} is not readable for this user; change its mode (chmod a+r)")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UsageError(
            f"{path} is truncated or not a safetensors file ({error}); fetch or train it again"
        ) from error


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
