"""The pocket Stable Diffusion from nothing to a folder: `python -m diffusion_core train pocket`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from diffusion_core.data import shapes
from diffusion_core.networks import AutoencoderKL, latent_scale
from diffusion_core.text_to_image.autoencoder import (
    AUTOENCODER,
    KL_WEIGHT,
    balance_latents,
    train_autoencoder,
)
from diffusion_core.text_to_image.build import build_pipeline, need_diffusers
from diffusion_core.text_to_image.scenes import NEW_KIND, ONE_IN
from diffusion_core.text_to_image.train import (
    LR_SCALES,
    TEXT_TO_IMAGE,
    train_text_to_image,
    training_scenes,
)
from diffusion_core.training import CHECKPOINT, TrainConfig, TrainResult, elapsed

if TYPE_CHECKING:
    import diffusers

OnStep = Callable[[str, int, float | None], None]  # of which part, steps done, loss if read


def train_pocket(
    runs: str | Path,
    *,
    device: str = "cpu",
    autoencoder: TrainConfig = AUTOENCODER,
    text_to_image: TrainConfig = TEXT_TO_IMAGE,
    pictures: int = 60_000,
    scenes: int = 100_000,
    on_step: OnStep | None = None,
) -> tuple[diffusers.StableDiffusionPipeline, dict[str, Any]]:
    """Train the autoencoder on `pictures` scenes of every kind, then the U-Net and the text
    encoder on the latents of `scenes` scenes without the new kind and the combinations held
    out. Each part keeps its checkpoints in a folder of its own in `runs`, and goes on from
    them.

    Returns: the pipeline, on the CPU, and what a card says of the run.
    Raises: UsageError unless diffusers is installed; as fit.
    """
    need_diffusers()
    folders = {name: Path(runs) / name for name in ("autoencoder", "text_to_image")}
    part = _Part(folders, on_step)
    torch.manual_seed(autoencoder.seed)
    net = AutoencoderKL().to(device)
    pixels = shapes(pictures, seed=1).pixels
    first = train_autoencoder(net, pixels, autoencoder, **part("autoencoder"))
    trained = cast(AutoencoderKL, first.ema.requires_grad_(False))
    x = shapes(2_000, seed=2).x.to(device)
    balance_latents(trained, x)
    scale = latent_scale(trained, x)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = build_pipeline(trained.cpu(), scale, folder, seed=text_to_image.seed).to(device)
    second = train_text_to_image(
        pipeline, training_scenes(scenes), text_to_image, **part("text_to_image")
    )
    about = {
        "data": f"shapes: seed 1, {pictures} pictures and {scenes} captioned scenes; no {NEW_KIND} "
        f"and no held-out combination (1 in {ONE_IN}) for the U-Net and the text encoder",
        "latent_scale": scale,
        "autoencoder": _run(autoencoder, first) | {"kl_weight": KL_WEIGHT},
        "text_to_image": _run(text_to_image, second) | {"lr_scales": LR_SCALES},
    }
    return pipeline.to("cpu"), about


class _Part:
    """What a part of the training is told besides its data: its folder, and whether it goes on
    from a checkpoint there."""

    def __init__(self, folders: dict[str, Path], on_step: OnStep | None) -> None:
        self.folders, self.on_step = folders, on_step

    def __call__(self, name: str) -> dict[str, Any]:
        folder, tell = self.folders[name], self.on_step
        report = None if tell is None else lambda step, loss: tell(name, step, loss)
        there = (folder / CHECKPOINT).exists()
        return {"folder": folder, "resume": there, "on_step": report}


def _run(config: TrainConfig, result: TrainResult) -> dict[str, Any]:
    seconds = elapsed(result.history)
    return {
        "config": dataclasses.asdict(config),
        "images_per_s": round(config.steps * config.batch_size / seconds, 1),
        "seconds": round(seconds, 1),
        "history": result.history[::10],
    }
