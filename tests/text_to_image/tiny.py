"""A Stable Diffusion of random weights that is small enough for tests of a second."""

import copy
from functools import cache
from tempfile import TemporaryDirectory

import torch

from diffusion_core.data import Captioned
from diffusion_core.data.words import write_tokenizer
from diffusion_core.networks import AutoencoderKL
from diffusion_core.text_to_image.build import make_scheduler, to_diffusers_vae


@cache
def tokenizer():
    from transformers import CLIPTokenizer

    with TemporaryDirectory() as folder:
        write_tokenizer(folder)
        return CLIPTokenizer.from_pretrained(folder)


def tiny_pipeline(**options):
    """A fresh one, always with the same weights."""
    pipeline = copy.deepcopy(_built(**options))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def _built(channels=(16, 32), width=32, prediction_type="v_prediction"):
    """The pocket's 8 x 8 latents and kinds of blocks, with fewer of them."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=channels,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=width,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        unet.set_attn_processor(AttnProcessor())
        text = CLIPTextConfig(
            vocab_size=len(tokenizer()),
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer().model_max_length,
            bos_token_id=tokenizer().bos_token_id,
            eos_token_id=tokenizer().eos_token_id,
            attn_implementation="eager",
        )
        pipeline = StableDiffusionPipeline(
            vae=to_diffusers_vae(AutoencoderKL(channels=(8, 8, 8), groups=4), 0.7),
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer(),
            unet=unet,
            scheduler=type(make_scheduler()).from_config(
                make_scheduler().config, prediction_type=prediction_type
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.eval()
    return pipeline


def painted(pipeline, prompt="a red circle", seed=0):
    """Two steps of the pipeline, as numbers."""
    generator = torch.Generator().manual_seed(seed)
    return pipeline(prompt, num_inference_steps=2, generator=generator, output_type="latent").images


def outputs(pipeline, seed=0):
    """What the U-Net says to some latents and some text."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, pipeline.unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return pipeline.unet(x, torch.tensor([10, 900]), text).sample


def some_images(n=6, seed=0, word="circle"):
    pixels = torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(seed))
    colours = ("red", "green", "blue")
    return Captioned(pixels.to(torch.uint8), [f"a {colours[i % 3]} {word}" for i in range(n)])
