"""How the autoencoder is trained: its loss by hand, that it learns, and the balance of its channels."""

import math

import pytest
import torch
from torch.testing import assert_close

from diffusion_core.data import from_uint8, shapes
from diffusion_core.networks import AutoencoderKL, Posterior
from diffusion_core.text_to_image import autoencoder_loss, balance_latents, train_autoencoder
from diffusion_core.training import TrainConfig
from tests.conftest import normal
from tests.training.small import Stop, losses, same, stop_at, weights


def small(seed=0):
    torch.manual_seed(seed)
    return AutoencoderKL((8, 16), groups=8)


def config(**changes):
    defaults = {"steps": 6, "batch_size": 4, "lr": 5e-3, "warmup": 3, "ema_decay": 0.9}
    return TrainConfig(
        **{**defaults, "precision": "fp32", "log_every": 1, "checkpoint_every": 2, **changes}
    )


def test_the_loss_by_hand():
    x = torch.zeros(1, 1, 2, 2)
    x_hat = torch.tensor([[[[1.0, 0.0], [-0.5, 0.5]]]])
    mean, log_var = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, math.log(3.0)]])
    kl = 0.5 * (4 + 1 - 1 - 0) + 0.5 * (0 + 3 - 1 - math.log(3))
    absolute, squared = (1 + 0 + 0.5 + 0.5) / 4, (1 + 0 + 0.25 + 0.25) / 4
    downwards, rightwards = (1.5 + 0.5) / 2, (1 + 1) / 2
    expected = absolute + squared + 0.5 * (downwards + rightwards) + 0.1 * kl / 4
    loss = autoencoder_loss(x, x_hat, Posterior(mean, log_var), 0.1)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_a_mean_over_images():
    x, x_hat = normal(4, 3, 8, 8), normal(4, 3, 8, 8, seed=1)
    posterior = Posterior(normal(4, 2, 4, 4, seed=2), normal(4, 2, 4, 4, seed=3))
    each = [
        autoencoder_loss(
            x[i : i + 1],
            x_hat[i : i + 1].double(),
            Posterior(*(p[i : i + 1] for p in posterior)),
            0.2,
        )
        for i in range(4)
    ]
    assert_close(
        autoencoder_loss(x, x_hat, posterior, 0.2), torch.stack(each).mean(), rtol=1e-6, atol=0
    )
    perfect = Posterior(torch.zeros(4, 2, 4, 4), torch.zeros(4, 2, 4, 4))
    assert autoencoder_loss(x.float(), x.float(), perfect, 0.2) == 0


def test_it_learns_two_images_by_heart():
    """Against the best that one colour an image can do, the background's."""
    pixels = shapes(2, size=16).pixels
    x = from_uint8(pixels)
    plain = (x - x.flatten(2).median(2).values[:, :, None, None]).abs().mean()
    torch.manual_seed(0)
    net = AutoencoderKL((16,), groups=8)
    conf = config(steps=80, lr=1e-2, log_every=80, checkpoint_every=80)
    result = train_autoencoder(net, pixels, conf)
    for trained in (result.net, result.ema):
        assert (trained.decode(trained.encode(x).mean) - x).abs().mean() < 0.3 * plain


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    pixels = shapes(8, size=16).pixels
    whole = train_autoencoder(small(), pixels, config())
    with pytest.raises(Stop):
        train_autoencoder(small(), pixels, config(), folder=tmp_path, on_step=stop_at(3))
    again = {"folder": tmp_path, "resume": True}
    resumed = train_autoencoder(small(7), pixels, config(), **again)
    same(weights(whole.ema), weights(resumed.ema))
    assert losses(whole) == losses(resumed)
    with pytest.raises(ValueError, match="kl_weight"):
        train_autoencoder(small(), pixels, config(), kl_weight=1.0, **again)
    with pytest.raises(ValueError, match="images"):
        train_autoencoder(small(), pixels[:7], config(), **again)


def test_latents_are_noisy_in_training():
    """The decoder sees draws, not means: with a large variance the loss is another one."""
    pixels, net = shapes(4, size=16).pixels, small()
    with torch.no_grad():
        net.quant_conv.bias[4:] = -30.0
    quiet = losses(train_autoencoder(net, pixels, config(steps=1), kl_weight=0.0))
    net = small()
    with torch.no_grad():
        net.quant_conv.bias[4:] = 3.0
    assert losses(train_autoencoder(net, pixels, config(steps=1), kl_weight=0.0)) != quiet


def test_balanced_latents_have_mean_0_and_one_variance_and_decode_to_the_same():
    net = small().double()
    with torch.no_grad():
        net.quant_conv.weight[:4] *= torch.tensor([1.0, 3.0, 0.2, 2.0])[:, None, None, None]
        net.quant_conv.bias[:4] += torch.tensor([1.0, -2.0, 0.0, 5.0])
    x, z = normal(20, 3, 16, 16), normal(20, 4, 8, 8, seed=1)
    with torch.no_grad():
        before, image = net.encode(x), net(x, z)[0]
        balance_latents(net, x)
        after = net.encode(x)
        assert_close(net(x, z)[0], image, rtol=0, atol=1e-9)
    assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4).double(), rtol=0, atol=1e-9)
    variance = before.mean.var((0, 2, 3)).mean()
    assert_close(after.mean.var((0, 2, 3)), variance.expand(4), rtol=1e-9, atol=0)
    assert_close(
        (after.log_var - before.log_var).std((0, 2, 3)), torch.zeros(4).double(), rtol=0, atol=1e-9
    )
