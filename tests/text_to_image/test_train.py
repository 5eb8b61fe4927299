"""Training of the U-Net and the text encoder."""

import dataclasses

import pytest
import torch

from diffusion_core.ddpm import q_sample
from diffusion_core.prediction import predict_v
from diffusion_core.schedules import NoiseSchedule, linear_betas
from diffusion_core.text_to_image import train_pocket, training_scenes, v_loss
from diffusion_core.text_to_image.autoencoder import AUTOENCODER
from diffusion_core.text_to_image.train import TEXT_TO_IMAGE, encode_scenes, encode_text

SCHEDULE = NoiseSchedule.from_betas(linear_betas())
SMALL = {
    "autoencoder": dataclasses.replace(AUTOENCODER, steps=3, batch_size=4, log_every=1),
    "text_to_image": dataclasses.replace(
        TEXT_TO_IMAGE, steps=4, batch_size=4, log_every=1, checkpoint_every=2, precision="fp32"
    ),
    "pictures": 8,
    "scenes": 8,
}


def test_the_loss_is_that_of_v():
    g = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(3, 4, 8, 8, generator=g) for _ in range(2))
    t = torch.tensor([1, 500, 1000])
    v = predict_v(x_0, eps, t, SCHEDULE)
    assert v_loss(lambda x, t: v, x_0, t, eps, SCHEDULE) == 0
    assert v_loss(lambda x, t: v + 2, x_0, t, eps, SCHEDULE).item() == pytest.approx(4, rel=1e-5)
    seen = []
    v_loss(lambda x, t: seen.append(x) or v, x_0, t, eps, SCHEDULE)
    assert torch.equal(seen[0], q_sample(x_0, t, eps, SCHEDULE))


def test_scenes_become_scaled_latents(fresh):
    scenes = training_scenes(5)
    whole = encode_scenes(fresh.vae, scenes)
    assert whole.shape == (5, 4, 8, 8)
    torch.testing.assert_close(encode_scenes(fresh.vae, scenes, batch=2), whole)


def test_the_text_is_what_the_pipeline_reads(fresh):
    captions = ["a red star", "a small blue ring on a white background"]
    ours = encode_text(fresh, captions)
    theirs, _ = fresh.encode_prompt(captions, "cpu", 1, False)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_it_would_have(tmp_path):
    """Stopped in the U-Net's training; the autoencoder's is finished and is not repeated."""
    whole, about = train_pocket(tmp_path / "whole", **SMALL)

    def stop(part, step, loss):
        if part == "text_to_image" and step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_pocket(tmp_path / "stopped", on_step=stop, **SMALL)
    parts = []
    resumed, again = train_pocket(
        tmp_path / "stopped", on_step=lambda *row: parts.append(row[:2]), **SMALL
    )
    assert parts == [("text_to_image", 3), ("text_to_image", 4)]
    for name in ("vae", "unet", "text_encoder"):
        ours, theirs = (getattr(p, name).state_dict() for p in (whole, resumed))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert again["latent_scale"] == about["latent_scale"]


@pytest.mark.slow
def test_the_words_learn_slower_than_the_picture(tmp_path):
    """The factor of the text encoder's learning rate reaches the optimizer."""
    settings = SMALL | {
        "text_to_image": dataclasses.replace(
            SMALL["text_to_image"], steps=1, warmup=0, ema_decay=0.0
        )
    }
    pipeline, _ = train_pocket(tmp_path, **settings)
    from diffusion_core.networks import AutoencoderKL
    from diffusion_core.text_to_image.build import build_pipeline

    start = build_pipeline(AutoencoderKL(), 1.0, tmp_path, seed=0)
    moved = {
        name: max(
            (a - b).abs().max().item()
            for a, b in zip(getattr(pipeline, name).parameters(), getattr(start, name).parameters())
        )
        for name in ("unet", "text_encoder")
    }
    assert moved["unet"] == pytest.approx(1e-3, rel=0.05)  # Adam's first step is the learning rate
    assert moved["text_encoder"] == pytest.approx(0.3e-3, rel=0.05)
