"""LoRA: a frozen layer learns through two thin matrices beside it. Hu et al. 2021."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_core._validate import UsageError, check_whole


class LoRALinear(nn.Module):
    """A linear layer that is kept as it is, and a correction of rank r that is learned.

    B is zero at the start, so that the layer begins as the one it replaces; A is drawn as the
    weights of a new layer are (peft does the same; the paper draws it from a Gaussian).

    Equation: Hu et al. 2021 eq. 3, with the scale of its section 4.1,

            h = W x + alpha / r B A x
    Shapes: W (out, in), A (r, in), B (out, r).
    Raises: UsageError if r < 1; TypeError unless it is whole.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, r: int = 8, alpha: float = 8.0) -> None:
        super().__init__()
        check_whole("r", r, 1)
        self.base = base.requires_grad_(False)
        self.scale = alpha / r
        rows, columns = base.weight.flatten(1).shape
        self.A = nn.Parameter(base.weight.new_empty(r, columns))
        self.B = nn.Parameter(base.weight.new_zeros(rows, r))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * F.linear(F.linear(x, self.A), self.B)

    def delta(self) -> Tensor:
        """What the correction adds to W: alpha / r B A."""
        return (self.scale * self.B @ self.A).view_as(self.base.weight)


class LoRAConv2d(LoRALinear):
    """The same for a convolution: A is one with r channels and the same kernel, B one of 1 x 1.

    Shapes: W (out, in, k, k), A (r, in k k), B (out, r).
    """

    base: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        A = self.A.view(-1, *self.base.weight.shape[1:])
        h = F.conv2d(x, A, None, self.base.stride, self.base.padding, self.base.dilation)
        return self.base(x) + self.scale * F.conv2d(h, self.B[:, :, None, None])


_LAYERS: dict[type[nn.Module], type[LoRALinear]] = {nn.Linear: LoRALinear, nn.Conv2d: LoRAConv2d}


def inject(net: nn.Module, targets: Sequence[str], r: int = 8, alpha: float = 8.0) -> list[str]:
    """Freeze a net, and give each layer whose name ends as one of `targets` ("to_q",
    "ff.net.2") an adapter.

    Returns: the names of these layers.
    Raises: UsageError naming the targets that no layer has, or the layers that take no
        adapter: the net is then as it was.
    """
    found = {name: layer for name, layer in net.named_modules() if _ends(name, targets)}
    missing = [target for target in targets if not any(_ends(name, [target]) for name in found)]
    if missing:
        raise UsageError(f"no layer's name ends in {', '.join(missing)}; names: {_layers(net)}")
    wrong = [
        f"{name} ({type(layer).__name__})" for name, layer in found.items() if not _fits(layer)
    ]
    if wrong:
        raise UsageError(
            f"no adapter fits {', '.join(wrong)}: it must be a Linear or a Conv2d of one group, "
            "with zeros around it; a layer that has an adapter is merged or unloaded first"
        )
    net.requires_grad_(False)
    for name, layer in found.items():
        _put(net, name, _LAYERS[type(layer)](layer, r, alpha))
    return list(found)


def adapters(net: nn.Module) -> dict[str, LoRALinear]:
    """The layers of a net that have an adapter, by name."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, LoRALinear)}


def lora_state_dict(net: nn.Module) -> dict[str, Tensor]:
    """Only A and B of every adapter: what is worth a file."""
    return {
        f"{name}.{key}": getattr(layer, key).detach()
        for name, layer in adapters(net).items()
        for key in "AB"
    }


@torch.no_grad()
def merge(net: nn.Module) -> None:
    """Add every adapter to its layer's weights, and take it away: the net computes the same
    (up to rounding), as fast as before."""
    for layer in adapters(net).values():
        layer.base.weight += layer.delta()
    unload(net)


def unload(net: nn.Module) -> None:
    """Take every adapter away: the net is again the one it was, and still frozen."""
    for name, layer in adapters(net).items():
        _put(net, name, layer.base)


def _ends(name: str, targets: Sequence[str]) -> bool:
    return any(f".{name}".endswith(f".{target}") for target in targets)


def _fits(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or layer.padding_mode != "zeros"):
        return False
    return type(layer) in _LAYERS


def _layers(net: nn.Module) -> str:
    """The last parts of the names of a net's linear layers and convolutions."""
    names = [name for name, layer in net.named_modules() if type(layer) in _LAYERS]
    return ", ".join(sorted({".".join(name.split(".")[-2:]) for name in names})) or "none"


def _put(net: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, layer)
