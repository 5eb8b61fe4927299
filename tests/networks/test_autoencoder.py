"""The autoencoder: equal to diffusers' with the same weights, and its posterior to its formulas."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from diffusion_core.networks import AutoencoderKL, Posterior, latent_scale
from tests.conftest import normal

F64 = torch.float64
SMALL = {"channels": (8, 16), "groups": 4}


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return AutoencoderKL(**{**SMALL, **changes}).double()


# --- diffusers' ---


@pytest.mark.parametrize(
    "settings",
    [
        {"channels": (32, 64, 64), "blocks": 1, "groups": 16, "latent": 4},
        {"channels": (8, 16), "blocks": 2, "groups": 4, "latent": 3},
        {"channels": (8,), "blocks": 1, "groups": 8, "latent": 2, "image": 1},
    ],
)
def test_its_weights_fit_into_diffusers_and_give_the_same(settings):
    diffusers = pytest.importorskip("diffusers")
    net = build(**settings)
    image = settings.get("image", 3)
    theirs = diffusers.AutoencoderKL(
        in_channels=image,
        out_channels=image,
        block_out_channels=settings["channels"],
        down_block_types=("DownEncoderBlock2D",) * len(settings["channels"]),
        up_block_types=("UpDecoderBlock2D",) * len(settings["channels"]),
        layers_per_block=settings["blocks"],
        norm_num_groups=settings["groups"],
        latent_channels=settings["latent"],
        mid_block_add_attention=False,
    ).double()
    theirs.load_state_dict(net.state_dict(), strict=True)
    x = normal(2, image, 16, 24)
    with torch.no_grad():
        posterior, expected = net.encode(x), theirs.encode(x).latent_dist
        assert_close(posterior.mean, expected.mean, rtol=0, atol=1e-6)
        assert_close(posterior.log_var, expected.logvar, rtol=0, atol=1e-6)
        assert_close(posterior.kl(), expected.kl(), rtol=1e-6, atol=0)
        z = normal(*posterior.mean.shape, seed=1)
        assert_close(net.decode(z), theirs.decode(z).sample, rtol=0, atol=1e-6)
    assert net.factor == 2 ** (len(settings["channels"]) - 1)
    assert posterior.mean.shape == (2, settings["latent"], 16 // net.factor, 24 // net.factor)


def test_the_configuration_builds_the_same_net():
    net = build(blocks=2, latent=3, image=1)
    again = AutoencoderKL(**net.config).double()
    again.load_state_dict(net.state_dict())
    x = normal(1, 1, 8, 8)
    assert torch.equal(again.encode(x).mean, net.encode(x).mean)


# --- the posterior ---


def test_kl_is_the_divergence_from_a_standard_normal_distribution():
    mean, log_var = normal(3, 4, 2, 2), normal(3, 4, 2, 2, seed=1)
    kl = Posterior(mean, log_var).kl()
    each = kl_divergence(
        Normal(mean, (0.5 * log_var).exp()), Normal(torch.zeros(()), torch.ones(()))
    )
    assert_close(kl, each.sum((1, 2, 3)), rtol=1e-12, atol=0)
    assert torch.equal(Posterior(0 * mean, 0 * mean).kl(), torch.zeros(3, dtype=F64))


def test_a_draw_has_the_posteriors_mean_and_standard_deviation():
    mean, log_var = torch.tensor([2.0, -1.0], dtype=F64), torch.tensor([0.0, -2.0], dtype=F64)
    n = 40_000
    draws = Posterior(mean, log_var).draw(normal(n, 2))
    std = (0.5 * log_var).exp()
    assert ((draws.mean(0) - mean).abs() < 4 * std / n**0.5).all()
    assert ((draws.std(0) / std - 1).abs() < 4 / (2 * n) ** 0.5).all()
    assert torch.equal(Posterior(mean, log_var).draw(0 * mean), mean)


def test_forward_decodes_a_draw():
    net, x = build(), normal(2, 3, 8, 8)
    z = normal(2, 4, 4, 4, seed=1)
    x_hat, posterior = net(x, z)
    assert torch.equal(posterior.mean, net.encode(x).mean)
    assert torch.equal(x_hat, net.decode(posterior.draw(z)))


def test_the_log_variance_is_kept_in_bounds():
    net = build()
    with torch.no_grad():
        net.quant_conv.bias[4:6] = 1e3
        net.quant_conv.bias[6:] = -1e3
        log_var = net.encode(normal(1, 3, 8, 8)).log_var
    assert torch.equal(log_var[:, :2], torch.full_like(log_var[:, :2], 20.0))
    assert torch.equal(log_var[:, 2:], torch.full_like(log_var[:, 2:], -30.0))


# --- the net ---


def test_every_image_is_encoded_by_itself_and_every_parameter_learns():
    net, x = build(), normal(3, 3, 8, 8)
    assert_close(net.encode(x).mean[1:2], net.encode(x[1:2]).mean, rtol=0, atol=1e-12)
    x_hat, posterior = net(x, normal(3, 4, 4, 4, seed=1))
    ((x_hat - x).square().mean() + posterior.kl().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize("shape", [(33, 32), (32, 30), (1, 1)])
def test_images_that_cannot_be_halved_are_refused(shape):
    net = AutoencoderKL((8, 8, 8), groups=4)
    height, width = shape
    with pytest.raises(
        ValueError, match=rf"{height} x {width} pixels: both must be multiples of 4"
    ):
        net.encode(torch.zeros(1, 3, *shape))


def test_channels_that_do_not_fall_into_groups_are_refused():
    with pytest.raises(ValueError, match=r"channels = \(16, 24\) must be multiples of groups = 16"):
        AutoencoderKL((16, 24), groups=16)


# --- the scale of its latents ---


def test_latent_scale_gives_latents_a_standard_deviation_of_1():
    net, x = build(), normal(7, 3, 8, 8)
    scale = latent_scale(net, x, batch_size=3)
    means = net.encode(x).mean.detach()
    assert (scale * means).std(correction=0).item() == pytest.approx(1, rel=1e-12)
    by_hand = sum((v - means.mean()) ** 2 for v in means.flatten()) / means.numel()
    assert scale == pytest.approx(1 / by_hand.sqrt().item(), rel=1e-12)
    assert scale == pytest.approx(latent_scale(net, x), rel=1e-12)
    assert isinstance(scale, float)
