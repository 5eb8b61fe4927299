"""Fine-tuning of a text-to-image pipeline on one's own images: LoRA on its U-Net, with diffusers
and peft. What runs here on the pocket model runs on Stable Diffusion, too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_core._validate import UsageError
from diffusion_core.data import Captioned
from diffusion_core.ddpm import eps_loss
from diffusion_core.interop import schedule_from
from diffusion_core.prediction import EpsModel
from diffusion_core.schedules import NoiseSchedule
from diffusion_core.text_to_image.adapters import add_adapter, remove_adapter
from diffusion_core.text_to_image.build import need_diffusers
from diffusion_core.text_to_image.train import encode_images, encode_text, v_loss
from diffusion_core.training import TrainConfig, TrainResult, fit, generator_of_step

if TYPE_CHECKING:
    import diffusers

FINE_TUNE = TrainConfig(
    steps=400,
    batch_size=32,
    lr=2e-3,
    warmup=20,
    ema_decay=0.98,
    label_dropout=0.1,
    log_every=20,
    checkpoint_every=100,
)
_AT_ONCE = 8  # images, or captions, that are encoded together


def fine_tune(
    pipeline: diffusers.StableDiffusionPipeline,
    images: Captioned,
    config: TrainConfig = FINE_TUNE,
    *,
    r: int = 8,
    alpha: float = 8.0,
    targets: str | Sequence[str] = "attention",
    old: Captioned | None = None,
    old_share: float = 0.4,
    name: str = "default",
    folder: str | Path | None = None,
    resume: bool = False,
    on_step: Callable[[int, float | None], None] | None = None,
) -> TrainResult:
    """Teach a pipeline new images by an adapter on its frozen U-Net, which is active at the end.
    `old` images, of what the model can do already, are a share of every batch: they keep it
    from forgetting.

    Equation: the loss that the model was trained with, over A and B alone (Hu et al. 2021,
        eq. 3); v_loss or eps_loss, as the scheduler says.
    Returns: the adapter's parameters, their moving average (the adapter has it at the end),
        and the log.
    Raises: UsageError if images, captions and model do not fit together, or as add_adapter;
        else as fit. The pipeline then has no adapter of this name.
    """
    need_diffusers()
    loss = _loss_of(pipeline.scheduler)
    schedule = schedule_from(pipeline.scheduler)
    if not 0 <= old_share < 1:
        raise UsageError(f"old_share = {old_share} must be in [0, 1)")
    every = [images] if old is None else [images, old]
    for part in every:
        _check(pipeline, part)
    pixels = torch.cat([part.pixels for part in every])
    captions = [caption for part in every for caption in part.captions]
    n_new, n_old = len(images.captions), len(captions) - len(images.captions)
    from_old = round(old_share * config.batch_size) if n_old else 0

    x = encode_images(pipeline.vae, pixels)
    texts = encode_captions(pipeline, ["", *captions])  # the empty prompt is the first
    learned = add_adapter(pipeline, r=r, alpha=alpha, targets=targets, name=name, seed=config.seed)

    settings = {
        "r": r,
        "alpha": alpha,
        "targets": targets if isinstance(targets, str) else [*targets],
    }
    settings |= {"images": _digest(pixels, captions), "old_images": n_old, "old_share": old_share}

    def loss_of_step(k: int) -> Tensor:
        generator = generator_of_step(config.seed, k)
        new = torch.randint(n_new, (config.batch_size - from_old,), generator=generator)
        seen = torch.randint(max(n_old, 1), (from_old,), generator=generator) + n_new
        index = torch.cat([new, seen])
        t = torch.randint(1, schedule.T + 1, index.shape, generator=generator)
        eps = torch.randn(x[index].shape, generator=generator).to(x.device)
        dropped = torch.rand(index.shape, generator=generator) < config.label_dropout
        text = texts[torch.where(dropped, 0, index + 1)]
        unet = lambda x_t, t: pipeline.unet(x_t, t.to(x_t.device) - 1, text).sample
        return loss(unet, x[index], t, eps, schedule)

    try:
        result = fit(
            nn.ParameterList(learned),  # so that averages and checkpoints hold A and B alone
            loss_of_step,
            config,
            settings=settings,
            folder=folder,
            resume=resume,
            on_step=on_step,
        )
    except BaseException:
        remove_adapter(pipeline, name)
        raise
    result.net.load_state_dict(result.ema.state_dict())
    return result


@torch.no_grad()
def encode_captions(pipeline: diffusers.StableDiffusionPipeline, captions: Sequence[str]) -> Tensor:
    """Captions as the U-Net reads them: (N, tokens, width).

    Raises: UsageError if a caption is longer than the text encoder reads: it would be cut.
    """
    most = pipeline.tokenizer.model_max_length
    for caption in captions:
        count = len(pipeline.tokenizer(caption, verbose=False).input_ids)
        if count > most:
            raise UsageError(f"{caption!r} has {count} tokens, at most {most} are read; shorten it")
    parts = [
        encode_text(pipeline, captions[i : i + _AT_ONCE]).float()
        for i in range(0, len(captions), _AT_ONCE)
    ]
    return torch.cat(parts)


def _loss_of(scheduler: Any) -> Callable[[EpsModel, Tensor, Tensor, Tensor, NoiseSchedule], Tensor]:
    """The loss of what the model predicts."""
    if scheduler.config.prediction_type == "v_prediction":
        return v_loss
    if scheduler.config.prediction_type == "epsilon":
        return lambda *args: eps_loss(*args).mean()
    raise UsageError(
        f"the scheduler's prediction_type is {scheduler.config.prediction_type!r}; fine_tune "
        "knows 'epsilon' and 'v_prediction'"
    )


def _check(pipeline: diffusers.StableDiffusionPipeline, images: Captioned) -> None:
    pixels, captions = images
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    if pixels.shape[1:] != (3, side, side):
        raise UsageError(
            f"the images have shape {tuple(pixels.shape[1:])}, this model paints (3, {side}, "
            f"{side}); load_captioned_folder(folder, size={side})"
        )
    if not len(pixels) or len(pixels) != len(captions):
        raise UsageError(f"{len(pixels)} images and {len(captions)} captions; give as many, some")
    if pipeline.unet.dtype != torch.float32:
        raise UsageError(
            f"the U-Net has {pipeline.unet.dtype}, in which small steps are lost; load the "
            "pipeline with torch_dtype=torch.float32"
        )


def _digest(pixels: Tensor, captions: Sequence[str]) -> str:
    digest = hashlib.sha256(pixels.cpu().contiguous().numpy().data)
    digest.update("\n".join(captions).encode())
    return digest.hexdigest()[:16]
