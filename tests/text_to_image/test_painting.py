"""Pictures of prompts: each from its own seed, with each scheduler, and what is refused."""

import pytest
import torch

from diffusion_core._validate import UsageError
from diffusion_core.data import MOST_TOKENS
from diffusion_core.text_to_image import check_prompt, make_scheduler_like, paint_prompts

RED, BLUE = "a red star", "a blue ring on a white background"
FEW = {"steps": 2, "guidance_scale": 2.0}


def test_a_picture_depends_on_its_prompt_and_seed_not_on_its_batch(fresh):
    together = paint_prompts(fresh, [RED, BLUE, RED], [5, 6, 7], scheduler="ddpm", **FEW)
    assert together.shape == (3, 3, 32, 32) and together.abs().max() <= 1
    alone = paint_prompts(fresh, [BLUE], [6], scheduler="ddpm", **FEW)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    in_twos = paint_prompts(fresh, [RED, BLUE, RED], [5, 6, 7], scheduler="ddpm", batch=2, **FEW)
    torch.testing.assert_close(in_twos, together, rtol=0, atol=1e-4)
    assert (together[0] - together[2]).abs().max() > 1e-3


def test_the_pipeline_keeps_its_scheduler(fresh):
    before = fresh.scheduler
    paint_prompts(fresh, [RED], [0], scheduler="euler", **FEW)
    assert fresh.scheduler is before
    with pytest.raises(UsageError, match="scheduler = 'plms' is unknown"):
        paint_prompts(fresh, [RED], [0], scheduler="plms", **FEW)
    assert fresh.scheduler is before


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++", "euler"])
def test_another_scheduler_has_the_networks_settings(fresh, name):
    scheduler = make_scheduler_like(fresh, name)
    scheduler.set_timesteps(25)
    assert scheduler.config.prediction_type == "v_prediction"
    assert int(scheduler.timesteps[0]) == 999 and len(scheduler.timesteps) == 25
    torch.testing.assert_close(scheduler.betas, fresh.scheduler.betas)


def test_eulers_method_is_ddim(fresh):
    ddim, euler = (
        paint_prompts(fresh, [RED], [0], steps=10, scheduler=name) for name in ("ddim", "euler")
    )
    torch.testing.assert_close(euler, ddim, rtol=0, atol=0.01)


def test_a_negative_prompt_and_the_scale_change_the_picture(fresh):
    plain, other, strong = (
        paint_prompts(fresh, [RED], [0], **(FEW | changes))
        for changes in ({}, {"negative_prompt": BLUE}, {"guidance_scale": 5.0})
    )
    assert (plain - other).abs().max() > 1e-3 and (plain - strong).abs().max() > 1e-3


def test_what_is_refused(fresh):
    with pytest.raises(ValueError, match="1 prompts and 2 seeds"):
        paint_prompts(fresh, [RED], [0, 1])
    with pytest.raises(UsageError, match="steps = 1001 is more than the 1000"):
        paint_prompts(fresh, [RED], [0], steps=1001)
    with pytest.raises(UsageError, match="steps = 0 must be at least 1"):
        paint_prompts(fresh, [RED], [0], steps=0)
    with pytest.raises(ValueError, match="guidance_scale = nan"):
        paint_prompts(fresh, [RED], [0], guidance_scale=float("nan"))


@pytest.mark.parametrize(
    "prompt", ["", RED, "A Red STAR, on a white background.", " ".join(["a"] * 18)]
)
def test_prompts_that_can_be_read(fresh, prompt):
    check_prompt(fresh, prompt)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a crimson star over the moon", r"does not know 'crimson', 'moon'. It knows: a an"),
        (" ".join(["a"] * 19), rf"21 tokens.*reads {MOST_TOKENS}: leave out 1 word"),
    ],
)
def test_prompts_that_cannot(fresh, prompt, said):
    with pytest.raises(UsageError, match=said):
        check_prompt(fresh, prompt)


def test_another_models_words_are_its_own_affair(fresh, monkeypatch):
    monkeypatch.setattr(fresh.tokenizer, "model_max_length", 77)
    check_prompt(fresh, "a crimson moon")
