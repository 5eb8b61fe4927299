"""The pocket Stable Diffusion: the classes of diffusers and transformers, at a size that a
laptop trains."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from diffusion_core._validate import UsageError
from diffusion_core.data.words import MOST_TOKENS, write_tokenizer
from diffusion_core.files import write_json
from diffusion_core.networks import AutoencoderKL

if TYPE_CHECKING:
    import diffusers
    import transformers

POCKET = Path(__file__).parents[1] / "weights" / "pocket"
WIDTH = 128  # of the text's vectors


def need_diffusers() -> None:
    """Raises: UsageError saying what to install, unless diffusers, transformers and peft can
    be imported."""
    try:
        import diffusers  # noqa: F401
        import peft  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"text to image needs a package that is not there ({error}): "
            "pip install 'diffusion-core[text-to-image]'"
        ) from error


def make_text_encoder(tokenizer: transformers.CLIPTokenizer) -> transformers.CLIPTextModel:
    """CLIP's text encoder: 3 layers of 4 heads, 128 wide. Its tokens begin at a standard
    deviation of 0.5: at CLIP's 0.02 the words of a small model stay invisible behind the
    positions."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MOST_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    encoder = CLIPTextModel(config)
    nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    return encoder


def make_unet() -> diffusers.UNet2DConditionModel:
    """Stable Diffusion's U-Net with two resolutions, 8 x 8 and 4 x 4, which read the text
    both: at 4 x 4 alone, the attributes of two things get mixed up."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4),  # the numbers of heads: a name that diffusers kept
    )
    unet.set_attn_processor(AttnProcessor())
    return unet


def to_diffusers_vae(net: AutoencoderKL, scale: float) -> diffusers.AutoencoderKL:
    """Our autoencoder as diffusers' class of that name, with the same weights.

    Raises: RuntimeError from PyTorch if a weight had no place there.
    """
    from diffusers import AutoencoderKL as Theirs

    config: dict[str, Any] = net.config
    channels = config["channels"]
    vae = Theirs(
        in_channels=config["image"],
        out_channels=config["image"],
        latent_channels=config["latent"],
        block_out_channels=tuple(channels),
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=config["blocks"],
        norm_num_groups=config["groups"],
        mid_block_add_attention=False,
        sample_size=8 * net.factor,
        scaling_factor=scale,
    )
    vae.load_state_dict(net.state_dict())
    return vae


def make_scheduler() -> diffusers.DDIMScheduler:
    """DDIM on the book's linear betas, for a network that predicts v. At T the signal's rate
    is 0.006: next to nothing of a background's colour is left for the network to lean on."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def build_pipeline(
    autoencoder: AutoencoderKL, scale: float, tokenizer_folder: str | Path, *, seed: int = 0
) -> diffusers.StableDiffusionPipeline:
    """A pipeline with a trained autoencoder, whose U-Net and text encoder are fresh.

    Raises: UsageError unless diffusers is installed.
    """
    need_diffusers()
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    write_tokenizer(tokenizer_folder)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, text_encoder = make_unet(), make_text_encoder(tokenizer)
    return StableDiffusionPipeline(
        vae=to_diffusers_vae(autoencoder, scale),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_pipeline(pipeline: diffusers.StableDiffusionPipeline, folder: str | Path) -> None:
    """The pipeline in half precision as a folder of diffusers, readable for everyone
    (safetensors writes files that only their owner may read). The text encoder's configuration
    asks for single precision: else transformers would open it in half, diffusers the rest in
    single, and the two do not fit."""
    folder = Path(folder)
    with quiet():
        pipeline.to(torch.float16).save_pretrained(folder)
        pipeline.to(torch.float32)
    config = folder / "text_encoder" / "config.json"
    write_json(config, json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"})
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    write_tokenizer(folder / "tokenizer")
    for file in folder.rglob("*"):
        os.chmod(file, 0o755 if file.is_dir() else 0o644)


def load_pocket(folder: str | Path = POCKET) -> diffusers.StableDiffusionPipeline:
    """The pocket Stable Diffusion, in single precision, without progress bars.

    Raises: UsageError unless diffusers is installed; FileNotFoundError without the folder.
    """
    need_diffusers()
    from diffusers import StableDiffusionPipeline

    if not (Path(folder) / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no pipeline (no model_index.json); the package ships one in {POCKET}"
        )
    with quiet():
        pipeline = StableDiffusionPipeline.from_pretrained(
            str(folder), torch_dtype=torch.float32, safety_checker=None, local_files_only=True
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def quiet() -> Iterator[None]:
    """diffusers and transformers without bars of loading, remarks on precision, and the warning
    that torch_dtype will have another name one day (older versions know only this one)."""
    from diffusers.utils import logging as theirs
    from transformers.utils import logging as transformers_logging

    verbosity, bars = (
        theirs.get_verbosity(),
        [module for module in (theirs, transformers_logging) if module.is_progress_bar_enabled()],
    )
    theirs.set_verbosity(logging.CRITICAL)
    for module in bars:
        module.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        theirs.set_verbosity(verbosity)
        for module in bars:
            module.enable_progress_bar()
