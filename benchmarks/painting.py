"""What the benchmarks that paint have in common: each image has a generator of its own."""

import base64
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_core.data import Scene
from diffusion_core.evaluation import Verdict, judge_scene
from diffusion_core.text_to_image import paint_prompts


def starts(seed: int, chosen: Sequence[int]) -> tuple[Tensor, list[torch.Generator]]:
    """x_T of the chosen MNIST images of a seed, and the generators that go on with each."""
    generators = [torch.Generator().manual_seed(seed * 1_000_000 + i) for i in chosen]
    return torch.stack([torch.randn(1, 28, 28, generator=g) for g in generators]), generators


def in_bf16(net: nn.Module, on: bool) -> Callable[..., Tensor]:
    """The net, its matrix products in bfloat16 if `on`, its answer in float32."""

    def model(x: Tensor, t: Tensor, *y: Tensor | None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            return net(x, t, *y).float()

    return model


def as_text(pixels: Tensor) -> str:
    """Images of uint8 as the tables hold them."""
    return base64.b64encode(pixels.numpy().tobytes()).decode()


def paint_scenes(
    pipeline: Any, scenes: Sequence[Scene], seeds: Sequence[int], **how: Any
) -> tuple[Tensor, list[Verdict], float]:
    """Paint the captions of scenes.

    Returns: (images, what the judge says of each, the processor's seconds of the painting).
    """
    began = time.process_time()
    x = paint_prompts(pipeline, [scene.caption for scene in scenes], seeds, **how)
    seconds = time.process_time() - began
    return x, [judge_scene(image, scene) for image, scene in zip(x, scenes)], seconds
