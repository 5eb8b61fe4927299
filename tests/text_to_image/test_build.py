"""The pocket pipeline is made of the real classes, and comes back from its folder as it was."""

import stat
import sys

import pytest
import torch

from diffusion_core._validate import UsageError
from diffusion_core.schedules import NoiseSchedule, linear_betas
from diffusion_core.text_to_image import build_pipeline, load_pocket, save_pipeline
from diffusion_core.text_to_image.build import need_diffusers
from diffusion_core.text_to_image.train import encode_text

PROMPT = "a red star above a blue ring on a white background"


def paint(pipeline, prompt=PROMPT, **changes):
    generator = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt"} | changes
    return pipeline(prompt, generator=generator, **settings).images


def test_the_classes_are_those_of_stable_diffusion(fresh):
    assert {name: type(part).__name__ for name, part in fresh.components.items() if part} == {
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "scheduler": "DDIMScheduler",
    }


def test_the_scheduler_has_the_books_table(fresh):
    table = NoiseSchedule.from_betas(linear_betas()).alpha_bar[1:]
    torch.testing.assert_close(fresh.scheduler.alphas_cumprod.double(), table, rtol=1e-4, atol=1e-7)
    assert fresh.scheduler.config.prediction_type == "v_prediction"
    fresh.scheduler.set_timesteps(25)
    assert fresh.scheduler.timesteps[0] == 999 and fresh.scheduler.timesteps[-1] == 39


def test_our_autoencoder_is_the_pipelines(fresh, autoencoder):
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        theirs, ours = fresh.vae.encode(x).latent_dist, autoencoder.encode(x)
        torch.testing.assert_close(theirs.mean, ours.mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(theirs.logvar, ours.log_var, rtol=0, atol=1e-6)
        z = ours.mean
        torch.testing.assert_close(fresh.vae.decode(z).sample, autoencoder.decode(z))


def test_a_folder_comes_back_as_it_was_to_half_precision(fresh, tmp_path):
    before = paint(fresh)
    save_pipeline(fresh, tmp_path / "pocket")
    after = paint(load_pocket(tmp_path / "pocket"))
    parts = load_pocket(tmp_path / "pocket").components
    assert {parts[n].dtype for n in ("unet", "vae", "text_encoder")} == {torch.float32}
    assert after.dtype == torch.float32
    assert (after - before).abs().max() < 0.01  # half precision has 11 bits
    again = paint(load_pocket(tmp_path / "pocket"))
    assert torch.equal(after, again)


def test_a_saved_folder_asks_for_single_precision_of_its_text_encoder(fresh, tmp_path):
    """transformers opens a model in the precision that its configuration names, diffusers in
    single: of a folder in half precision the two would not fit together."""
    from transformers import CLIPTextModel

    save_pipeline(fresh, tmp_path / "pocket")
    encoder = CLIPTextModel.from_pretrained(tmp_path / "pocket" / "text_encoder")
    assert encoder.dtype == torch.float32


def test_a_saved_folder_is_readable_for_everyone_and_single_precision_goes_on(fresh, tmp_path):
    save_pipeline(fresh, tmp_path / "pocket")
    for file in (tmp_path / "pocket").rglob("*"):
        assert file.stat().st_mode & stat.S_IROTH, file
    assert {p.dtype for p in fresh.unet.parameters()} == {torch.float32}


def test_the_tokens_are_visible_behind_the_positions(fresh):
    """CLIP's own start, 0.02, leaves two prompts almost the same vectors."""
    assert 0.4 < fresh.text_encoder.get_input_embeddings().weight.std() < 0.6
    with torch.no_grad():
        red, blue = encode_text(fresh, ["a red star", "a blue star"])
    assert (red - blue)[2:].abs().mean() > 0.1
    assert torch.equal(red[:2], blue[:2])  # causal: what comes before the word does not see it


def test_a_seed_makes_the_same_networks(autoencoder, tmp_path):
    first, same = (build_pipeline(autoencoder, 0.5, tmp_path, seed=3) for _ in range(2))
    other = build_pipeline(autoencoder, 0.5, tmp_path, seed=4)
    weights = [p.unet.conv_in.weight for p in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_missing_folder_says_where_one_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no pipeline .*weights"):
        load_pocket(tmp_path)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'diffusion-core\[text-to-image\]'"):
        need_diffusers()
