"""Where a process trains: on which device, and which part of the global batch is its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from diffusion_core._validate import UsageError, check_device
from diffusion_core.training.config import seed_of_step

_FAR = 2_654_435_769  # between the seeds of processes; a CPU's generator keeps 32 bits of a seed


class Place(NamedTuple):
    """The device of this process, its number among the processes that train together
    (rank), and how many they are."""

    device: torch.device
    rank: int = 0
    processes: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """This process's part of the global batch.

        Raises: ValueError unless the processes can share it evenly.
        """
        n, rank = self.processes, self.rank
        if batch_size % n:
            raise UsageError(f"batch_size = {batch_size} does not split evenly over {n} processes")
        return slice(rank * batch_size // n, (rank + 1) * batch_size // n)


def is_main() -> bool:
    """Whether this process is the only one, or the first of those that train together."""
    return int(os.environ.get("RANK", 0)) == 0


def find_place(device: str | None) -> Place:
    """The place of this process, as `torchrun` and `accelerate launch` say it in the
    environment (RANK, LOCAL_RANK, WORLD_SIZE); each of several takes a GPU of its own.
    They are connected at the first call, and stay so until the program ends.

    Raises: ValueError if the device is not available, or one GPU is named for several
        processes.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if accelerator is None else accelerator.type
    if processes == 1:
        return Place(check_device(device))
    if device != "cpu":
        if torch.device(device).index is not None:
            raise UsageError(
                f"device = {device!r}: each of the {processes} processes takes a device of its "
                f"own; say {device.split(':')[0]!r}"
            )
        device = f"{device}:{os.environ.get('LOCAL_RANK', os.environ['RANK'])}"
    found = check_device(device)
    if found.type == "cuda":
        torch.cuda.set_device(found)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if found.type == "cuda" else "gloo")
    return Place(found, distributed.get_rank(), distributed.get_world_size())


def together(net: nn.Module, place: Place) -> nn.Module:
    """The net as the loop calls it: on several processes their gradients are averaged."""
    if place.processes == 1:
        return net
    return DistributedDataParallel(net, [place.device] if place.device.type == "cuda" else None)


def mean_over_processes(value: Tensor, place: Place) -> float:
    """The mean of a number that each process has one of."""
    if place.processes > 1:
        distributed.all_reduce(value)
    return value.item() / place.processes


def wait_for_all(place: Place) -> None:
    """Until every process is here: the main one may still be writing."""
    if place.processes > 1:
        distributed.barrier()


@contextmanager
def dropout_seeded(k: int, seed: int, place: Place) -> Iterator[None]:
    """Layers like dropout draw from torch's global generator: for step k it starts
    anew, on each process elsewhere, so that a resumed run draws the same; afterwards it
    is as before."""
    with torch.random.fork_rng(devices=[place.device] if place.device.type == "cuda" else []):
        torch.manual_seed((seed_of_step(seed, k) + (place.rank + 1) * _FAR) % 2**32)
        yield
