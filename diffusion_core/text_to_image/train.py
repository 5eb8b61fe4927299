"""How the pocket Stable Diffusion's U-Net and text encoder learn to paint captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_core.data import Scene, draw_scene, from_uint8
from diffusion_core.data.words import describe
from diffusion_core.ddpm import q_sample
from diffusion_core.prediction import predict_v
from diffusion_core.schedules import NoiseSchedule, linear_betas
from diffusion_core.text_to_image.scenes import scenes_of
from diffusion_core.training import TrainConfig, TrainResult, fit, generator_of_step

if TYPE_CHECKING:
    import diffusers

TEXT_TO_IMAGE = TrainConfig(
    steps=6_500,
    batch_size=128,
    lr=1e-3,
    warmup=200,
    ema_decay=0.998,
    label_dropout=0.1,
    log_every=50,
    checkpoint_every=250,
)
LR_SCALES = {"text_encoder": 0.3}


@torch.no_grad()
def encode_images(vae: diffusers.AutoencoderKL, pixels: Tensor, batch: int = 8) -> Tensor:
    """Images as the U-Net sees them: the means of their latents, times the latent scale;
    `batch` of them at a time.

    Shapes: pixels (N, 3, H, W) uint8; result (N, c, h, w).
    """
    parts = [
        vae.encode(from_uint8(part).to(vae.device, vae.dtype)).latent_dist.mean
        for part in pixels.split(batch)
    ]
    return torch.cat(parts).float() * vae.config.scaling_factor


def encode_scenes(
    vae: diffusers.AutoencoderKL, scenes: Sequence[Scene], batch: int = 500
) -> Tensor:
    """The scaled latents of drawn scenes, as encode_images says. Shapes: result (N, 4, 8, 8)."""
    return encode_images(vae, torch.stack([draw_scene(scene) for scene in scenes]), batch)


def v_loss(
    net: Callable[[Tensor, Tensor], Tensor],
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    schedule: NoiseSchedule,
) -> Tensor:
    """The mean squared error of a network that predicts v = signal_rate eps - noise_rate x_0.

    Equation: Salimans & Ho 2022, section 4 and appendix D.
    Shapes: x_0, eps (B, *); t (B,) in 1..T; net(x_t, t) gives (B, *); result (), the mean.
    """
    v = predict_v(x_0, eps, t, schedule)
    return F.mse_loss(net(q_sample(x_0, t, eps, schedule), t).float(), v)


def train_text_to_image(
    pipeline: diffusers.StableDiffusionPipeline,
    scenes: Sequence[Scene],
    config: TrainConfig = TEXT_TO_IMAGE,
    *,
    latents: Tensor | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    on_step: Callable[[int, float | None], None] | None = None,
) -> TrainResult:
    """Train a pipeline's U-Net and text encoder together on scenes and their wordings; with a
    chance of `label_dropout` a caption becomes the empty prompt. The pipeline gets the moving
    averages in the end.

    Equation: v_loss, with t uniform on 1..T, and the book's linear schedule.
    Raises: as fit.
    """
    schedule = NoiseSchedule.from_betas(linear_betas())
    x = encode_scenes(pipeline.vae, scenes) if latents is None else latents
    net = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})

    def loss_of_step(k: int) -> Tensor:
        generator = generator_of_step(config.seed, k)
        rng = np.random.default_rng((config.seed, k))
        index = rng.integers(len(scenes), size=config.batch_size)
        captions = [
            "" if rng.random() < config.label_dropout else describe(scenes[i], rng) for i in index
        ]
        t = torch.randint(1, schedule.T + 1, (config.batch_size,), generator=generator)
        x_0 = x[torch.from_numpy(index)]
        eps = torch.randn(x_0.shape, generator=generator).to(x_0.device)
        text = encode_text(pipeline, captions)
        return v_loss(
            lambda x_t, t: pipeline.unet(x_t, t.to(x_t.device) - 1, text).sample,
            x_0,
            t,
            eps,
            schedule,
        )

    result = fit(
        net,
        loss_of_step,
        config,
        lr_scales=LR_SCALES,
        settings={"scenes": len(scenes)},
        folder=folder,
        resume=resume,
        on_step=on_step,
    )
    net.load_state_dict(result.ema.state_dict())
    return result


def encode_text(pipeline: diffusers.StableDiffusionPipeline, captions: Sequence[str]) -> Tensor:
    """What the U-Net reads: (B, tokens, width), every prompt filled up to the longest length."""
    tokens = pipeline.tokenizer(
        list(captions), padding="max_length", truncation=True, return_tensors="pt"
    )
    return pipeline.text_encoder(tokens.input_ids.to(pipeline.device)).last_hidden_state


def training_scenes(n: int, seed: int = 1) -> list[Scene]:
    """The first n scenes of a seed that the training may show."""
    return list(islice(scenes_of(seed), n))
