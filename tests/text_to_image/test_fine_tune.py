"""Fine-tuning: what is learned, from what, and what is refused."""

import dataclasses
import threading

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from diffusion_core._validate import UsageError
from diffusion_core.data import Captioned, from_uint8
from diffusion_core.ddpm import q_sample
from diffusion_core.files import read_safetensors
from diffusion_core.schedules import NoiseSchedule, linear_betas
from diffusion_core.text_to_image import (
    adapter_tensors,
    encode_captions,
    encode_images,
    fine_tune,
    load_adapter,
    remove_adapter,
    save_adapter,
)
from diffusion_core.training import CHECKPOINT, TrainConfig
from tests.text_to_image.tiny import outputs, painted, some_images, tiny_pipeline

SHORT = TrainConfig(
    steps=4, batch_size=4, lr=1e-2, warmup=1, ema_decay=0.5, precision="fp32", log_every=1,
    checkpoint_every=2,
)  # fmt: skip
IMAGES, OLD = some_images(), some_images(4, seed=1, word="square")


def tuned(config=SHORT, images=IMAGES, **options):
    pipeline = tiny_pipeline()
    result = fine_tune(pipeline, images, config, r=2, alpha=4.0, **options)
    return pipeline, result


def equal(a, b):
    a, b = adapter_tensors(a), adapter_tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- what is learned ---


def test_the_adapter_learns_and_the_base_does_not():
    base = tiny_pipeline()
    pipeline, result = tuned(dataclasses.replace(SHORT, steps=20, lr=2e-2))
    assert (outputs(pipeline) - outputs(base)).abs().max() > 1e-3
    assert [row["step"] for row in result.history] == list(range(1, 21))
    remove_adapter(pipeline)
    for part in ("unet", "vae", "text_encoder"):
        after, before = getattr(pipeline, part).state_dict(), getattr(base, part).state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(outputs(pipeline), outputs(base))


def test_it_learns_these_images():
    """One image, one caption: its loss falls, with the noise of the steps averaged out."""
    one = Captioned(IMAGES.pixels[:1], IMAGES.captions[:1])
    config = dataclasses.replace(SHORT, steps=60, batch_size=8, lr=2e-2, label_dropout=0.0)
    _, result = tuned(config, one, targets="all")
    losses = [row["loss"] for row in result.history]
    assert sum(losses[-15:]) < 0.9 * sum(losses[:15])


def test_the_moving_average_is_what_the_pipeline_has():
    pipeline, result = tuned()
    learned = [p for p in pipeline.unet.parameters() if p.requires_grad]
    assert len(learned) == len(list(result.ema.parameters())) == 2 * 32
    assert all(torch.equal(p, q) for p, q in zip(learned, result.ema.parameters()))


def test_saved_and_loaded_it_paints_the_same(tmp_path):
    pipeline, _ = tuned(targets="all")
    save_adapter(pipeline, tmp_path)
    fresh = tiny_pipeline()
    load_adapter(fresh, tmp_path)
    assert_close(painted(fresh), painted(pipeline), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_the_first_loss_by_hand(prediction_type):
    """At step 0 the adapter does nothing: the base's mean squared error of v or eps, its noise
    and times drawn in this order, the U-Net asked at t - 1."""
    pipeline = tiny_pipeline(prediction_type=prediction_type)
    config = dataclasses.replace(SHORT, steps=1, label_dropout=0.0)
    result = fine_tune(pipeline, IMAGES, config, r=2)
    base = tiny_pipeline(prediction_type=prediction_type)
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(6, (4,), generator=generator)
    torch.randint(1, (0,), generator=generator)
    t = torch.randint(1, 1001, (4,), generator=generator)
    eps = torch.randn(4, 4, 8, 8, generator=generator)
    with torch.no_grad():
        x_0 = base.vae.encode(from_uint8(IMAGES.pixels)).latent_dist.mean[index] * 0.7
        text, _ = base.encode_prompt([IMAGES.captions[i] for i in index], "cpu", 1, False)
        x_t = base.scheduler.add_noise(x_0, eps, t - 1)
        target = base.scheduler.get_velocity(x_0, eps, t - 1)
        target = target if prediction_type == "v_prediction" else eps
        loss = (base.unet(x_t, t - 1, text).sample - target).square().mean().item()
    schedule = NoiseSchedule.from_betas(linear_betas())
    assert_close(x_t, q_sample(x_0, t, eps, schedule), rtol=0, atol=1e-5)
    assert result.history[0]["loss"] == pytest.approx(loss, abs=1e-5)


def test_seeds():
    a, b = tuned()[0], tuned()[0]
    other = tuned(dataclasses.replace(SHORT, seed=1))[0]
    assert equal(a, b)
    assert not equal(a, other)


# --- from what ---


def asked(monkeypatch, config, **options):
    """What the loss was asked about in each step: latents (B, 4, 8, 8), and text."""
    import sys

    from diffusion_core.text_to_image import fine_tune as package  # the function

    module = sys.modules[package.__module__]
    seen, loss = [], module.v_loss

    def noted(net, x_0, t, eps, schedule):
        seen.append(x_0)
        return loss(net, x_0, t, eps, schedule)

    monkeypatch.setattr(module, "v_loss", noted)
    tuned(config, **options)
    return torch.stack(seen)


@pytest.mark.parametrize(("share", "n"), [(0.4, 4), (0.0, 0), (0.9, 9)])
def test_old_images_are_a_share_of_every_batch(monkeypatch, share, n):
    config = dataclasses.replace(SHORT, batch_size=10)
    seen = asked(monkeypatch, config, old=OLD, old_share=share)
    old = encode_images(tiny_pipeline().vae, OLD.pixels)
    is_old = (seen[:, :, None] == old).flatten(3).all(-1).any(-1)  # (steps, batch)
    assert is_old.sum(1).tolist() == [n] * 4


def test_without_old_images_all_are_new(monkeypatch):
    seen = asked(monkeypatch, dataclasses.replace(SHORT, steps=20))
    new = encode_images(tiny_pipeline().vae, IMAGES.pixels)
    which = (seen[:, :, None] == new).flatten(3).all(-1)
    assert which.any(-1).all()
    assert which.any(0).any(0).all()  # each of them has its turn


def test_captions_are_dropped(monkeypatch):
    """With a chance of 1 every caption is the empty prompt, whatever they say."""
    config = dataclasses.replace(SHORT, label_dropout=1.0, steps=2)
    other = Captioned(IMAGES.pixels, ["a square"] * 6)
    assert equal(tuned(config)[0], tuned(config, other)[0])
    config = dataclasses.replace(config, label_dropout=0.0)
    assert not equal(tuned(config)[0], tuned(config, other)[0])


def test_images_and_captions_are_encoded_as_the_pipeline_does():
    """In parts of 8, as all at once."""
    pipeline, images = tiny_pipeline(), some_images(19)
    with torch.no_grad():
        mean = pipeline.vae.encode(from_uint8(images.pixels)).latent_dist.mean
    assert_close(encode_images(pipeline.vae, images.pixels), 0.7 * mean, rtol=0, atol=1e-5)
    texts = encode_captions(pipeline, ["", *images.captions])
    expected, empty = pipeline.encode_prompt(images.captions, "cpu", 1, True)
    assert_close(texts[1:], expected, rtol=0, atol=1e-5)
    assert_close(texts[:1], empty[:1], rtol=0, atol=1e-5)


# --- stopped, and gone on with ---


def stop_after(n):
    """Ctrl-C, as the process gets it, at the end of step n."""
    import signal

    def on_step(step, loss):
        if step == n:
            assert threading.current_thread() is threading.main_thread()
            signal.raise_signal(signal.SIGINT)

    return on_step


def test_stopped_and_resumed_is_as_uninterrupted(tmp_path):
    """In the same pipeline, as in a notebook, and in a fresh one."""
    config = dataclasses.replace(SHORT, steps=5)
    whole, result = tuned(config, old=OLD)
    pipeline = tiny_pipeline()
    before = outputs(pipeline)
    options = {"r": 2, "alpha": 4.0, "old": OLD, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        fine_tune(pipeline, IMAGES, config, **options, on_step=stop_after(3))
    assert torch.equal(outputs(pipeline), before)
    checkpoint = (tmp_path / CHECKPOINT).read_bytes()
    for again in (pipeline, tiny_pipeline()):
        (tmp_path / CHECKPOINT).write_bytes(checkpoint)
        resumed = fine_tune(again, IMAGES, config, **options, resume=True)
        assert equal(again, whole)
        losses = [[row["loss"] for row in r.history] for r in (resumed, result)]
        assert losses[0] == losses[1]


def test_a_checkpoint_holds_the_adapter_alone(tmp_path):
    pipeline, _ = tuned(folder=tmp_path)
    tensors, _ = read_safetensors(tmp_path / CHECKPOINT)
    numbers = sum(p.numel() for p in adapter_tensors(pipeline).values())
    held = sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith(".step"))
    assert held == 4 * numbers  # weights, their average, Adam's two moments


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"r": 4}, "r: 2 there, 4 here"),
        ({"alpha": 1.0}, "alpha: 4.0 there, 1.0 here"),
        ({"targets": ["to_q"]}, "targets: 'attention' there"),
        ({"images": some_images(seed=9)}, "images: "),
        ({"images": Captioned(IMAGES.pixels, ["a star"] * 6)}, "images: "),
        ({"old": OLD}, "old_images: 0 there, 4 here"),
    ],
    ids=["r", "alpha", "targets", "pixels", "captions", "old"],
)
def test_another_run_is_not_resumed(tmp_path, change, says):
    config = dataclasses.replace(SHORT, steps=1)
    tuned(config, folder=tmp_path)
    options = {"images": IMAGES, "r": 2, "alpha": 4.0} | change
    pipeline = tiny_pipeline()
    with pytest.raises(UsageError, match=f"another configuration.*{says}"):
        fine_tune(pipeline, config=config, folder=tmp_path, resume=True, **options)
    assert not getattr(pipeline.unet, "peft_config", {})


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": Captioned(torch.zeros(2, 3, 64, 64).byte(), ["a", "b"])}, r"\(3, 64, 64\), this model paints \(3, 32, 32\); .*size=32"),
        ({"images": Captioned(IMAGES.pixels, ["a circle"])}, "6 images and 1 captions"),
        ({"images": Captioned(IMAGES.pixels[:0], [])}, "0 images and 0 captions"),
        ({"old": Captioned(OLD.pixels[:, :1], OLD.captions)}, r"shape \(1, 32, 32\)"),
        ({"old": OLD, "old_share": 1.0}, r"old_share = 1.0 must be in \[0, 1\)"),
        ({"images": Captioned(IMAGES.pixels, ["a red circle " * 9] * 6)}, "has 29 tokens, at most 20 are read"),
        ({"targets": "none"}, "choose one of"),
        ({"resume": True}, "resume=True needs the folder"),
    ],
)  # fmt: skip
def test_what_does_not_fit(change, says):
    pipeline = tiny_pipeline()
    before = outputs(pipeline)
    with pytest.raises(UsageError, match=says):
        fine_tune(pipeline, **{"images": IMAGES, "config": SHORT} | change)
    assert torch.equal(outputs(pipeline), before)
    assert not getattr(pipeline.unet, "peft_config", {})


def test_half_precision_and_other_predictions():
    pipeline = tiny_pipeline()
    pipeline.unet.half()
    with pytest.raises(UsageError, match=r"float16, in which .*torch_dtype=torch\.float32"):
        fine_tune(pipeline, IMAGES, SHORT)
    with pytest.raises(UsageError, match="'sample'; fine_tune knows 'epsilon' and 'v_prediction'"):
        fine_tune(tiny_pipeline(prediction_type="sample"), IMAGES, SHORT)
