"""LoRA adapters of a pipeline's U-Net in files of diffusers' format: written whole, and counted
when they are read.

A file has two ways to lose a part of an adapter, with a warning or with none:

* Its tensors may have one of two names, `to_q.lora_A.weight` (peft) or `to_q.lora.down.weight`
  (diffusers). `convert_state_dict_to_diffusers` renames those of the attention, and leaves all
  others; reading, diffusers looks at the first name alone, and if it is one of peft's, takes
  all for peft's. Then every renamed module is lost. safetensors sorts names: an adapter of
  attention and `conv1` begins with `attentions…to_k.lora.down` and is read whole; with
  `proj_in` it begins with `attentions.0.proj_in.lora_A`, and the attention is lost.
* Tensors do not hold alpha. Without metadata alpha = r is assumed.

So save_adapter renames nothing and writes the metadata, and load_adapter counts.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffusion_core._validate import UsageError
from diffusion_core.files import read_safetensors, write_bytes
from diffusion_core.text_to_image.build import need_diffusers

if TYPE_CHECKING:
    import diffusers

ADAPTER = "pytorch_lora_weights.safetensors"  # the name that load_lora_weights looks for
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("proj_in", "proj_out", "conv1", "conv2", "conv_shortcut")
TARGETS = {"attention": ATTENTION, "all": ATTENTION + FEED_FORWARD + CONVOLUTIONS}
_NAME = re.compile(r"(?:unet\.)?(.+)\.(?:lora_([AB])|lora\.(down|up))\.weight")
_META = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")


def add_adapter(
    pipeline: diffusers.StableDiffusionPipeline,
    *,
    r: int = 8,
    alpha: float = 8.0,
    targets: str | Sequence[str] = "attention",
    name: str = "default",
    seed: int = 0,
) -> list[nn.Parameter]:
    """Freeze the U-Net of a pipeline, and give it a fresh adapter, which alone is active: on
    the layers whose names end as one of `targets`, or of a list in TARGETS by name.

    Returns: the parameters to learn, A and B of every layer.
    Raises: UsageError if a target or a list is unknown, or the adapter's name is in use.
    """
    need_diffusers()
    from peft import LoraConfig

    unet = pipeline.unet
    _check_new(unet, name)
    if isinstance(targets, str):
        if targets not in TARGETS:
            raise UsageError(
                f"targets = {targets!r}: choose one of {tuple(TARGETS)}, or list the ends of names"
            )
        targets = TARGETS[targets]
    layers = [f".{layer}" for layer, _ in unet.named_modules()]
    missing = [t for t in targets if not any(layer.endswith(f".{t}") for layer in layers)]
    if missing:
        raise UsageError(f"no layer of the U-Net has a name that ends in {', '.join(missing)}")
    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        config = LoraConfig(r=r, lora_alpha=alpha, target_modules=list(targets))
        unet.add_adapter(config, adapter_name=name)
    return [p for p in unet.parameters() if p.requires_grad]


def adapter_tensors(
    pipeline: diffusers.StableDiffusionPipeline, name: str = "default"
) -> dict[str, Tensor]:
    """A and B of every layer that an adapter changes, by peft's names.

    Raises: UsageError if the pipeline has no adapter of this name.
    """
    from peft import get_peft_model_state_dict

    there = getattr(pipeline.unet, "peft_config", {})
    if name not in there:
        raise UsageError(f"the pipeline has no adapter {name!r}, only {list(there) or 'none'}")
    return get_peft_model_state_dict(pipeline.unet, adapter_name=name)


def save_adapter(
    pipeline: diffusers.StableDiffusionPipeline, folder: str | Path, name: str = "default"
) -> Path:
    """Write an adapter of a pipeline's U-Net where `pipeline.load_lora_weights(folder)` and
    load_adapter find it, its rank and alpha with it.

    Returns: the path of the file.
    Raises: UsageError if the pipeline has no adapter of this name; OSError as write_bytes.
    """
    tensors = adapter_tensors(pipeline, name)
    config = pipeline.unet.peft_config[name].to_dict()
    metadata = {key: config[key] for key in _META}
    metadata["target_modules"] = sorted(metadata["target_modules"])
    pipeline.save_lora_weights(
        folder, unet_lora_layers=tensors, unet_lora_adapter_metadata=metadata
    )
    path = Path(folder) / ADAPTER
    write_bytes(path, path.read_bytes())  # safetensors lets only the file's owner read it
    return path


def load_adapter(
    pipeline: diffusers.StableDiffusionPipeline, folder: str | Path, name: str = "default"
) -> list[str]:
    """Read an adapter from a folder (or file) in diffusers' format into a pipeline's U-Net,
    count what arrived, and make it the active one.

    Returns: the names of the layers that it changes.
    Raises: UsageError if the file holds something else than an adapter of a U-Net, was made
        for another base, or did not arrive whole: the pipeline then does not have it. Also if
        the name is in use; FileNotFoundError as read_safetensors.
    """
    need_diffusers()
    path = Path(folder)
    path = path / ADAPTER if path.is_dir() else path
    wanted = _by_layer(path, read_safetensors(path)[0])
    _check_new(pipeline.unet, name)
    _check_fits(pipeline.unet, path, wanted)
    with _quiet():
        pipeline.unet.load_lora_adapter(
            path.parent, prefix="unet", weight_name=path.name, adapter_name=name
        )
    found = _by_layer(path, adapter_tensors(pipeline, name))
    layers = list(dict.fromkeys(layer for layer, _ in wanted))
    lost = [
        layer
        for layer in layers
        if not all(_same(wanted.get((layer, key)), found.get((layer, key))) for key in "AB")
    ]
    if lost:
        remove_adapter(pipeline, name)
        raise UsageError(
            f"only {len(layers) - len(lost)} of the {len(layers)} layers in {path} were loaded; "
            f"lost: {_some(lost)}. It was written under two kinds of names (lora_A, lora.down); "
            "write it again with save_adapter"
        )
    pipeline.unet.set_adapters([name])
    return layers


def remove_adapter(pipeline: diffusers.StableDiffusionPipeline, name: str = "default") -> None:
    """Take an adapter away. Of those that remain the first is active; without any, the U-Net
    has its old layers again."""
    with _quiet():
        pipeline.unet.delete_adapters(name)
    left = list(getattr(pipeline.unet, "peft_config", {}))
    if left:
        pipeline.unet.set_adapters(left[:1])
    else:
        pipeline.unet.unload_lora()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without peft's warnings: that an adapter is the second one and that the active one goes,
    which is meant, and that layers are missing, which load_adapter counts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
        warnings.filterwarnings("ignore", "Adapter .* was active which is now", UserWarning)
        warnings.filterwarnings("ignore", "While injecting the PEFT adapters", RuntimeWarning)
        yield


def _by_layer(path: Path, tensors: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """Tensors by (layer, "A" or "B"), whichever of the two kinds of names they have."""
    found = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise UsageError(f"{path} holds {name}, which is no part of a U-Net's LoRA adapter")
        layer, key, way = match.groups()
        found[layer, key or {"down": "A", "up": "B"}[way]] = tensor
    if not found:
        raise UsageError(f"{path} holds no tensor")
    return found


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a.to(b), b)


def _check_fits(unet: nn.Module, path: Path, wanted: dict[tuple[str, str], Tensor]) -> None:
    """Raise UsageError unless every layer is there, with as many inputs and outputs."""
    layers = dict(unet.named_modules())
    faults = []
    for (name, key), tensor in wanted.items():
        layer = layers.get(name)
        weight = getattr(getattr(layer, "base_layer", layer), "weight", None)
        if not isinstance(weight, Tensor):
            faults.append(f"{name} is not there")
        elif key == "A" and tensor.shape[1:] != weight.shape[1:]:
            faults.append(
                f"{name} has inputs {tuple(weight.shape[1:])}, not {tuple(tensor.shape[1:])}"
            )
        elif key == "B" and tensor.shape[0] != weight.shape[0]:
            faults.append(f"{name} has {weight.shape[0]} outputs, not {tensor.shape[0]}")
    if faults:
        faults = list(dict.fromkeys(faults))
        raise UsageError(
            f"{path} was made for another base ({_some(faults)}); load it into the model that it "
            "was trained on"
        )


def _check_new(unet: nn.Module, name: str) -> None:
    if name in getattr(unet, "peft_config", {}):
        raise UsageError(
            f"the pipeline has an adapter {name!r} already; choose another name, or take it away: "
            f"remove_adapter(pipeline, {name!r})"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
