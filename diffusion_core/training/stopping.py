"""What stops a run before its end: a number that is not finite, or Ctrl-C."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion_core.training.checkpoints import RunState, steps_done


class NanLoss(FloatingPointError):
    """The loss, its gradient or a weight stopped being finite."""


class Watch:
    """The losses and the gradients' norms of the steps since they were last read. They stay
    on the device until then: reading them waits for it."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._seen: list[Tensor] = []

    def note(self, loss: Tensor, norm: Tensor) -> None:
        """One step more."""
        self._seen.append(torch.stack([loss.detach(), norm]))

    def check(self, state: RunState) -> None:
        """Read what was noted, and forget it.

        Raises: NanLoss naming the first step whose loss or gradient is not finite; or if all
            of them are, and a weight is not.
        """
        seen, self._seen = self._seen, []
        first = state.step - len(seen)
        for k, (loss, norm) in enumerate(torch.stack(seen).tolist() if seen else [], first):
            for name, value in (("loss", loss), ("norm of the gradient", norm)):
                if not math.isfinite(value):
                    self._stop(f"the {name} became {value} at step {k}")
        if not all_finite(state.net):
            self._stop(f"a weight became infinite or nan by step {state.step}")

    def _stop(self, what: str) -> None:
        kept = ""
        if self.path is not None and self.path.exists():
            kept = f"; {self.path} still holds step {steps_done(self.path)}, all of it finite"
        raise NanLoss(
            f"{what}{kept}. Try a new run, in another folder, with a lower lr, a smaller "
            "grad_clip, or precision='fp32'"
        )


def all_finite(net: nn.Module) -> bool:
    """Whether every weight is a finite number."""
    return bool(torch.stack([p.detach().isfinite().all() for p in net.parameters()]).all())


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets this event, so that a step that has begun is ended first; pressed again,
    it interrupts at once, as elsewhere."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield asked
        return
    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
