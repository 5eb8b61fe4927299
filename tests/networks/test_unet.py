"""The U-Net: equal to diffusers' with the same weights, part by part equal to its formulas, and
with the properties that a noise predictor must have."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from diffusion_core.data import Images
from diffusion_core.ddpm import eps_loss, simple_loss
from diffusion_core.networks import (
    AttentionBlock,
    Level,
    ResidualBlock,
    UNet,
    Upsample,
    timestep_embedding,
)
from diffusion_core.networks.unet import _groups
from diffusion_core.training import TrainConfig, train
from tests.conftest import normal

F64 = torch.float64
SMALL = {"width": 8, "multipliers": (1, 2), "attention": (False, True), "emb_dim": 16}


def shaken(net: nn.Module, seed: int = 0, by: float = 0.1) -> nn.Module:
    """The net with noise on every parameter, so that no branch is zero; float64."""
    net = net.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(by * torch.randn(p.shape, generator=generator, dtype=F64))
    return net


def build(seed: int = 0, **changes) -> UNet:
    return shaken(UNet(**{**SMALL, **changes}), seed)


# --- the embedding of t ---


def test_embedding_is_its_formula():
    t = torch.tensor([0.0, 1.0, 7.5, 999.0])
    emb = timestep_embedding(t, 6, max_period=1000.0)
    for b, time in enumerate(t.tolist()):
        for i, w in enumerate((1.0, 0.1, 0.01)):  # 1000^(-i/3)
            assert emb[b, i].item() == pytest.approx(math.cos(time * w), abs=1e-4)
            assert emb[b, 3 + i].item() == pytest.approx(math.sin(time * w), abs=1e-4)


@pytest.mark.parametrize("dim", [2, 32, 128])
@pytest.mark.parametrize("t", [torch.arange(1001), torch.linspace(0, 1000, 97)])
def test_embedding_is_diffusers(dim, t):
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    theirs = embeddings.get_timestep_embedding(t, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert_close(timestep_embedding(t, dim), theirs, rtol=0, atol=1e-6)
    theirs = embeddings.get_timestep_embedding(
        t, dim, flip_sin_to_cos=True, downscale_freq_shift=0, max_period=50
    )
    assert_close(timestep_embedding(t, dim, 50.0), theirs, rtol=0, atol=1e-6)


def test_embedding_tells_neighbours_apart():
    """The fastest wave turns by one radian a step, so that t and t + 1 are 2 sin(1/2) apart in it
    alone; no two of the 1,001 times are as close as that."""
    emb = timestep_embedding(torch.arange(1001), 128).double()
    distance = torch.cdist(emb, emb) + 10 * torch.eye(1001, dtype=F64)
    assert distance.min() >= 2 * math.sin(0.5) - 1e-4
    assert_close(
        emb.norm(dim=1), torch.full((1001,), 8.0, dtype=F64), rtol=0, atol=1e-5
    )  # sqrt(64 circles)


def test_embedding_is_float32_whatever_t_is():
    for dtype in (torch.int32, torch.int64, torch.float32, torch.float64):
        emb = timestep_embedding(torch.tensor([3, 997], dtype=dtype), 8)
        assert emb.dtype == torch.float32
        assert_close(emb, timestep_embedding(torch.tensor([3, 997]), 8), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("t", "dim", "message"),
    [
        (torch.zeros(3), 7, r"even dim .* dim = 7, t \(3,\)"),
        (torch.zeros(3, 1), 8, r"t of shape \(B,\), got dim = 8, t \(3, 1\)"),
        (torch.tensor(5), 8, r"t \(\)"),
    ],
)
def test_embedding_refuses_what_does_not_fit(t, dim, message):
    with pytest.raises(ValueError, match=message):
        timestep_embedding(t, dim)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_times_are_refused(dtype):
    t = torch.tensor([997], dtype=dtype)
    with pytest.raises(TypeError, match=f"{dtype}, which cannot hold every time step"):
        timestep_embedding(t, 8)
    with pytest.raises(TypeError, match="cannot hold"):
        build()(normal(1, 1, 4, 4), t)


# --- the parts, against their formulas ---


def norm(x, groups, layer):
    """Group normalization, written out."""
    g = x.reshape(len(x), groups, -1)
    g = (g - g.mean(2, keepdim=True)) / (g.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    return g.reshape(x.shape) * layer.weight[None, :, None, None] + layer.bias[None, :, None, None]


@pytest.mark.parametrize(("into", "out"), [(16, 16), (16, 24), (24, 8)])
def test_residual_block_is_its_formula(into, out):
    block, x, emb = shaken(ResidualBlock(into, out, 10)), normal(3, into, 4, 6), normal(3, 10)
    h = F.conv2d(
        F.silu(norm(x, into // 8, block.norm1)), block.conv1.weight, block.conv1.bias, padding=1
    )
    both = F.linear(F.silu(emb), block.emb.weight, block.emb.bias)
    scale, shift = both[:, :out, None, None], both[:, out:, None, None]
    h = norm(h, out // 8, block.norm2) * (1 + scale) + shift
    h = F.conv2d(F.silu(h), block.conv2.weight, block.conv2.bias, padding=1)
    skip = x if into == out else F.conv2d(x, block.skip.weight, block.skip.bias)
    assert_close(block(x, emb), skip + h, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "head_dim"), [(32, 32), (48, 16), (8, 8)])
def test_attention_is_its_formula(channels, head_dim):
    """Vaswani et al. 2017 eq. 1 for every head, one query pixel at a time."""
    block, x = shaken(AttentionBlock(channels, head_dim), by=0.4), normal(2, channels, 2, 3)
    pixels = norm(x, _groups(channels), block.norm).flatten(2).transpose(1, 2)  # (B, 6, C)
    weight, bias = block.to_qv.weight, block.to_qv.bias
    q = pixels @ weight[:channels].T + bias[:channels]
    v = pixels @ weight[channels:].T + bias[channels:]
    k = pixels @ block.to_k.weight.T
    mixed = torch.zeros_like(q)
    for head in range(0, channels, head_dim):
        one = slice(head, head + head_dim)
        for i in range(6):
            logits = (q[:, i, None, one] * k[:, :, one]).sum(2) / math.sqrt(head_dim)
            mixed[:, i, one] = (logits.softmax(1)[:, :, None] * v[:, :, one]).sum(1)
    out = mixed @ block.out.weight.T + block.out.bias
    assert_close(block(x), x + out.transpose(1, 2).reshape(x.shape), rtol=0, atol=1e-12)


def test_attention_has_head_dim_32_by_default_and_it_must_divide():
    assert AttentionBlock(64).heads == 2
    with pytest.raises(ValueError, match="head_dim = 32 must divide channels = 48"):
        AttentionBlock(48)


def test_keys_need_no_bias():
    """A bias of the keys adds the same number to every logit of a query: the softmax forgets it."""
    block, x = shaken(AttentionBlock(32)), normal(1, 32, 3, 3)
    before = block(x)
    biased = nn.Linear(32, 32).double()
    biased.weight, biased.bias = block.to_k.weight, nn.Parameter(normal(32))
    assert block.to_k.bias is None
    block.to_k = biased
    assert_close(block(x), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [
        (1, 1),
        (4, 1),
        (8, 1),
        (15, 1),
        (16, 2),
        (20, 2),
        (24, 3),
        (32, 4),
        (96, 12),
        (256, 32),
        (512, 32),
        (36, 4),
    ],
)
def test_groups(channels, groups):
    assert _groups(channels) == groups


def test_level_is_block_then_attention():
    level, x, emb = shaken(Level(8, 16, 4, True, 0.0)), normal(2, 8, 4, 4), normal(2, 4)
    assert_close(level(x, emb), level.attention(level.block(x, emb)), rtol=0, atol=0)
    assert level.attention.heads == 1  # heads of at most 32 channels
    assert Level(64, 64, 4, True, 0.0).attention.heads == 2
    without = shaken(Level(8, 16, 4, False, 0.0))
    assert_close(without(x, emb), without.block(x, emb), rtol=0, atol=0)


def test_upsample_repeats_pixels_then_convolves():
    up, x = shaken(Upsample(3)), normal(2, 3, 2, 3)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert_close(
        up(x), F.conv2d(repeated, up.conv.weight, up.conv.bias, padding=1), rtol=0, atol=1e-13
    )


def test_dropout_stands_before_the_last_convolution():
    block, x, emb = shaken(ResidualBlock(8, 8, 4, dropout=1.0)), normal(2, 8, 4, 4), normal(2, 4)
    assert_close(
        block.train()(x, emb), x + block.conv2.bias[None, :, None, None], rtol=0, atol=1e-14
    )
    assert (block.eval()(x, emb) - x - block.conv2.bias[None, :, None, None]).abs().max() > 1e-2


# --- the whole net, against diffusers with the same weights ---


def as_diffusers(net: UNet):
    """diffusers' UNet2DModel with the sizes and the weights of ours."""
    diffusers = pytest.importorskip("diffusers")
    c = net.config
    kinds = ["Attn" if a else "" for a in c["attention"]]
    theirs = diffusers.UNet2DModel(
        in_channels=c["channels"],
        out_channels=c["channels"],
        layers_per_block=c["blocks"],
        block_out_channels=[c["width"] * m for m in c["multipliers"]],
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
        attention_head_dim=min(
            [32] + [c["width"] * m for m, a in zip(c["multipliers"], c["attention"]) if a]
        ),
        norm_num_groups=1,
        attn_norm_num_groups=1,
        add_attention=c["attention"][-1],
        time_embedding_dim=c["emb_dim"],
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=None if net.classes is None else net.classes + 1,
        freq_shift=0,
        dropout=c["dropout"],
    ).double()
    theirs.time_proj.num_channels = c["emb_dim"]
    theirs.time_embedding.linear_1 = nn.Linear(c["emb_dim"], c["emb_dim"]).double()

    def put(there, here):
        there.load_state_dict(here.state_dict())
        if isinstance(here, nn.GroupNorm):
            there.num_groups = here.num_groups

    put(theirs.conv_in, net.conv_in)
    put(theirs.conv_norm_out, net.norm_out)
    put(theirs.conv_out, net.conv_out)
    put(theirs.time_embedding.linear_1, net.time_mlp[0])
    put(theirs.time_embedding.linear_2, net.time_mlp[2])
    if net.classes is not None:
        put(theirs.class_embedding, net.label_embedding)
    stages = [*theirs.down_blocks, theirs.mid_block, *theirs.up_blocks]
    levels = [m for part in (net.down, net.middle, net.up) for m in part if isinstance(m, Level)]
    for there, level in zip((r for s in stages for r in s.resnets), levels, strict=True):
        here = level.block
        for a, b in (
            ("norm1", "norm1"),
            ("conv1", "conv1"),
            ("norm2", "norm2"),
            ("conv2", "conv2"),
        ):
            put(getattr(there, a), getattr(here, b))
        put(there.time_emb_proj, here.emb)
        if there.conv_shortcut is not None:
            put(there.conv_shortcut, here.skip)
    attentions = [a for s in stages for a in getattr(s, "attentions", None) or [] if a is not None]
    ours = [m.attention for m in levels if isinstance(m.attention, AttentionBlock)]
    for there, here in zip(attentions, ours, strict=True):
        put(there.group_norm, here.norm)
        put(there.to_out[0], here.out)
        (q, v), (q_bias, v_bias) = here.to_qv.weight.chunk(2), here.to_qv.bias.chunk(2)
        for layer, weight, bias in (
            (there.to_q, q, q_bias),
            (there.to_v, v, v_bias),
            (there.to_k, here.to_k.weight, torch.zeros_like(q_bias)),
        ):
            layer.load_state_dict({"weight": weight, "bias": bias})
    resamplers = [d.conv for s in theirs.down_blocks for d in s.downsamplers or []]
    resamplers += [u.conv for s in theirs.up_blocks for u in s.upsamplers or []]
    own = [m for m in net.down if isinstance(m, nn.Conv2d)]
    own += [m.conv for m in net.up if isinstance(m, Upsample)]
    for there, here in zip(resamplers, own, strict=True):
        put(there, here)
    return theirs.train(net.training)


CASES = {
    "mnist": (
        {"width": 16, "multipliers": (1, 2, 4), "attention": (False, False, True), "classes": 10},
        (8, 8),
    ),
    "not square": ({"channels": 3, "multipliers": (1, 2), "attention": (True, False)}, (4, 10)),
    "two blocks": (
        {"blocks": 2, "multipliers": (1, 3), "attention": (False, True), "emb_dim": 24},
        (6, 6),
    ),
    "one level": ({"multipliers": (1,), "attention": (True,), "classes": 2}, (3, 5)),
    "no attention": ({"multipliers": (1, 1, 1), "attention": (False, False, False)}, (8, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_same_weights_same_output_as_diffusers(name):
    changes, size = CASES[name]
    net = build(**changes)
    theirs = as_diffusers(net)
    x, t = normal(3, net.channels, *size), torch.tensor([1.0, 250.5, 1000.0], dtype=F64)
    y = None if net.classes is None else torch.tensor([0, net.classes - 1, net.null_label])
    assert_close(net(x, t, y), theirs(x, t, y).sample, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("argument", "default"),
    [
        ("channels", 1),
        ("width", 32),
        ("multipliers", (1, 2, 4)),
        ("blocks", 1),
        ("attention", (False, False, True)),
        ("classes", None),
        ("dropout", 0.0),
        ("emb_dim", 128),
    ],
)
def test_defaults(argument, default):
    fits = {"width": 8, "multipliers": (1, 1, 1), "attention": (False, False, False), "emb_dim": 8}
    fits.pop(argument, None)
    made = UNet(**fits).config[argument]
    assert (tuple(made) if isinstance(made, list) else made) == default


def test_the_configuration_builds_the_same_net_again():
    net = build(channels=3, blocks=2, classes=4, dropout=0.25).eval()
    again = UNet(**net.config).double().eval()
    again.load_state_dict(net.state_dict())
    assert again.config == net.config
    x, t = normal(2, 3, 4, 4), torch.tensor([3, 900])
    assert_close(again(x, t), net(x, t), rtol=0, atol=0)


def test_dropout_reaches_every_residual_block_and_only_while_training():
    net = build(dropout=0.25)
    blocks = [m for m in net.modules() if isinstance(m, ResidualBlock)]
    assert [b.dropout.p for b in blocks] == [0.25] * 8
    x, t = normal(2, 1, 4, 4), torch.tensor([3, 900])
    assert (net.train()(x, t) - net(x, t)).abs().max() > 1e-3
    assert_close(net.eval()(x, t), net(x, t), rtol=0, atol=0)


# --- what a noise predictor must do ---


def test_starts_at_zero_and_so_the_loss_is_the_mean_square_of_the_noise(linear):
    net, x_0, eps = UNet(**SMALL).double(), normal(64, 1, 4, 4), normal(64, 1, 4, 4, seed=1)
    t = torch.arange(64) * 15 + 1
    assert not net(x_0, t).any()
    assert_close(eps_loss(net, x_0, t, eps, linear), eps.square().mean((1, 2, 3)), rtol=0, atol=0)
    loss = simple_loss(
        net, normal(512, 1, 4, 4), linear, generator=torch.Generator().manual_seed(0)
    )
    assert abs(loss.item() - 1) < 4 * math.sqrt(2 / (512 * 16))


@pytest.mark.parametrize(
    "size",
    [(1, 8, 8), (1, 28, 28), (3, 32, 32), (4, 8, 8)],
    ids=["digits", "mnist", "rgb", "latents"],
)
def test_every_size_of_the_book_starts_at_loss_1_and_trains(size, linear):
    """Digits, MNIST, colour, latents. Latents are no pixels: their two steps are written out."""
    torch.manual_seed(0)
    net = UNet(
        channels=size[0], width=8, multipliers=(1, 2, 4), attention=(False, False, True), emb_dim=16
    )
    x, t = normal(16, *size).float(), torch.arange(16) * 60 + 1
    eps = normal(16, *size, seed=1).float()
    out = net(x, t)
    assert out.shape == x.shape
    assert not out.any()
    loss = eps_loss(net, x, t, eps, linear)
    assert_close(loss, eps.square().mean((1, 2, 3)), rtol=0, atol=1e-6)
    assert abs(loss.mean().item() - 1) < 4 * math.sqrt(2 / eps.numel())

    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    if size[0] == 4:
        losses, optimizer = [], torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            loss = eps_loss(net, x, t, eps, linear).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[1] < losses[0]  # the same images, times and noise twice
        trained = net
    else:
        generator = torch.Generator().manual_seed(2)
        pixels = torch.randint(0, 256, (16, *size), generator=generator, dtype=torch.uint8)
        config = TrainConfig(steps=2, batch_size=4, warmup=0, log_every=1, precision="fp32")
        data = Images(pixels, torch.zeros(16, dtype=torch.int64))
        trained, _, history = train(net, data, linear, config, device="cpu")
        losses = [row["loss"] for row in history]
        assert abs(losses[0] - 1) < 4 * math.sqrt(2 / (4 * math.prod(size)))
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    after = dict(trained.named_parameters())
    assert all(bool(p.isfinite().all()) for p in after.values())
    moved = {name for name, p in after.items() if not torch.equal(p, before[name])}
    # the first step reaches conv_out alone; through it, the second reaches what comes before
    assert {"conv_out.weight", "conv_out.bias", "conv_in.weight", "norm_out.weight"} <= moved
    assert bool(trained(x, t).isfinite().all())
    assert trained(x, t).any()


def test_every_branch_starts_as_if_it_were_not_there():
    net = UNet(**SMALL)
    for m in net.modules():
        if isinstance(m, ResidualBlock):
            x = torch.randn(2, m.conv1.in_channels, 4, 4)
            assert_close(m(x, torch.randn(2, 16)), m.skip(x), rtol=0, atol=0)
        if isinstance(m, AttentionBlock):
            x = torch.randn(2, 16, 4, 4)
            assert_close(m(x), x, rtol=0, atol=0)
    zero = [name for name, p in net.named_parameters() if name.endswith("weight") and not p.any()]
    assert all(name.endswith(("conv2.weight", "out.weight")) for name in zero)
    assert len(zero) == 8 + 4 + 1  # residual blocks, attentions, conv_out


def test_after_three_steps_every_parameter_has_a_gradient(linear):
    torch.manual_seed(0)
    net = UNet(**SMALL, classes=3).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x_0, y = normal(16, 1, 4, 4), torch.arange(16) % 4
    for k in range(4):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(k)
        simple_loss(lambda x, t: net(x, t, y), x_0, linear, generator=generator).backward()
        silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
        if k == 0:
            assert set(dict(net.named_parameters())) - set(silent) == {
                "conv_out.weight",
                "conv_out.bias",
            }
        optimizer.step()
    assert silent == []
    assert bool((net.label_embedding.weight.grad != 0).all())  # each label, the null label too


def test_images_of_a_batch_do_not_meet():
    """A permuted batch gives the permuted output, and each image alone gives what it gives among
    others."""
    net, x, t = build(classes=5), normal(6, 1, 4, 4), torch.tensor([1, 10, 100, 500, 900, 1000])
    y, order = torch.arange(6), torch.tensor([3, 0, 5, 1, 4, 2])
    out = net(x, t, y)
    assert_close(net(x[order], t[order], y[order]), out[order], rtol=0, atol=1e-12)
    for i in range(6):
        assert_close(
            net(x[i : i + 1], t[i : i + 1], y[i : i + 1]), out[i : i + 1], rtol=0, atol=1e-12
        )


def test_overfits_eight_images(linear):
    """Eight images, each with its own time and noise: the net can learn the noise by heart."""
    torch.manual_seed(0)
    net = UNet(**{**SMALL, "width": 16})
    x_0, eps = normal(8, 1, 4, 4).float().sign(), normal(8, 1, 4, 4, seed=1).float()
    t = torch.tensor([50, 100, 200, 300, 400, 600, 800, 1000])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = eps_loss(net, x_0, t, eps, linear).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_time_label_and_image_each_change_the_output():
    net, x, t, y = build(classes=5), normal(1, 1, 4, 4), torch.tensor([500]), torch.tensor([2])
    out = net(x, t, y)
    for other in (net(x, t + 1, y), net(x, t, y + 1), net(x + 0.01, t, y)):
        assert (other - out).abs().max() > 1e-4


def test_shifting_the_skips_by_one_level_would_be_seen():
    """The skip of each level is the state of the down path at the same level, last in first out:
    recorded on the way."""
    net, seen, given = build(), [], []
    for m in net.down:
        m.register_forward_hook(lambda _, __, out: seen.append(out))
    net.conv_in.register_forward_hook(lambda _, __, out: seen.append(out))
    for m in net.up:
        if isinstance(m, Level):
            m.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    net(normal(2, 1, 4, 4), torch.tensor([5, 6]))
    assert len(seen) == len(given) == 4
    for skip, joined in zip(reversed(seen), given, strict=True):
        assert_close(
            joined[:, -skip.shape[1] :], skip, rtol=0, atol=0
        )  # the path first, the skip after it


# --- t, y, dtype ---


def test_one_time_for_all_or_one_each():
    net, x = build(), normal(3, 1, 4, 4)
    each = net(x, torch.tensor([7, 7, 7]))
    for t in (torch.tensor(7), torch.tensor(7.0), torch.tensor(7, dtype=F64), 7, 7.0):
        assert_close(net(x, t), each, rtol=0, atol=0)
    assert_close(
        net(x, torch.tensor([7, 8, 9]))[1], net(x[1:2], torch.tensor([8]))[0], rtol=0, atol=1e-12
    )
    between = net(x, torch.tensor(7.5))
    assert (between - each).abs().max() > 1e-6
    assert (between - net(x, 8)).abs().max() > 1e-6


def test_no_label_is_the_null_label():
    net, x, t = build(classes=5), normal(3, 1, 4, 4), torch.tensor([1, 2, 3])
    assert net.null_label == 5
    assert net.label_embedding.num_embeddings == 6
    assert_close(net(x, t), net(x, t, torch.tensor([5, 5, 5])), rtol=0, atol=0)
    assert (net(x, t) - net(x, t, torch.tensor([4, 4, 4]))).abs().max() > 1e-4


def test_the_embeddings_of_time_and_label_are_added():
    net, x, t, y = build(classes=5), normal(2, 1, 4, 4), torch.tensor([3, 4]), torch.tensor([0, 5])
    w = net.time_mlp
    time = F.linear(timestep_embedding(t, 16).double(), w[0].weight, w[0].bias)
    time = F.linear(F.silu(time), w[2].weight, w[2].bias)
    assert_close(net._embed(x, t, y), time + net.label_embedding.weight[y], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_the_output_has_the_dtype_of_x(dtype):
    net = build().to(dtype)
    assert net(normal(1, 1, 4, 4).to(dtype), 5).dtype == dtype


def test_under_autocast_the_output_has_the_dtype_of_x_and_is_nearly_the_same():
    net, x = build().float(), normal(2, 1, 4, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x, 5)
    assert low.dtype == torch.float32
    high = net(x, 5)
    assert 0 < (low - high).abs().max() < 0.1 * high.abs().max()


# --- bad input ---


@pytest.mark.parametrize(
    "shape", [(2, 1, 6, 8), (2, 1, 8, 6), (2, 3, 8, 8), (1, 8, 8), (2, 1, 8)], ids=str
)
def test_sizes_that_do_not_fit(shape):
    net = UNet(**{**SMALL, "multipliers": (1, 1, 1), "attention": (False,) * 3})
    with pytest.raises(ValueError) as error:
        net(torch.zeros(shape), 5)
    text = str(error.value)
    assert f"x has shape {shape}" in text
    assert "takes (B, 1, H, W) with H and W divisible by 4" in text
    assert "3 levels" in text


@pytest.mark.parametrize(
    ("levels", "sizes"), [(1, (5, 8)), (2, (14, 28)), (3, (8, 28)), (4, (8, 32))]
)
def test_sizes_that_fit(levels, sizes):
    net = UNet(**{**SMALL, "multipliers": (1,) * levels, "attention": (False,) * levels})
    for size in sizes:
        assert net(torch.zeros(1, 1, size, size), 5).shape == (1, 1, size, size)
    if levels == 4:
        with pytest.raises(ValueError, match=r"\(1, 1, 28, 28\).*divisible by 8 .*4 levels"):
            net(torch.zeros(1, 1, 28, 28), 5)


def test_times_that_do_not_fit():
    net, x = build(), normal(2, 1, 4, 4)
    for shape in ((3,), (1,), (2, 1)):
        with pytest.raises(ValueError) as error:
            net(x, torch.zeros(shape))
        assert f"t has shape {shape}, expected () or (2,)" in str(error.value)


@pytest.mark.parametrize("label", [-1, 6, 100])
def test_labels_out_of_range(label):
    net, x = build(classes=5), normal(5, 1, 4, 4)
    with pytest.raises(ValueError) as error:
        net(x, 5, torch.tensor([0, 5, 1, label, 7]))  # of two wrong ones the first is named
    assert f"label {label} is out of range: 0..4, or 5 for the null label" in str(error.value)
    with pytest.raises(ValueError, match=f"label {label} is out of range"):
        net(x, 5, torch.tensor([0, 5, 1, label, 2]))


def test_labels_of_the_wrong_shape_or_dtype():
    net, x = build(classes=5), normal(2, 1, 4, 4)
    with pytest.raises(
        ValueError, match=r"y has shape \(1,\) and dtype torch.int64, expected \(2,\)"
    ):
        net(x, 5, torch.tensor([1]))
    with pytest.raises(ValueError, match=r"dtype torch.int32, expected \(2,\) and int64"):
        net(x, 5, torch.tensor([1, 2], dtype=torch.int32))


def test_a_net_without_classes_says_so():
    net = build()
    with pytest.raises(ValueError, match="built without classes, so it has no null label"):
        _ = net.null_label
    with pytest.raises(ValueError, match="labels were given, but this U-Net was built without"):
        net(normal(1, 1, 4, 4), 5, torch.tensor([0]))


def test_arguments_of_the_net_that_do_not_fit():
    with pytest.raises(ValueError, match=r"attention \(True,\) must have one entry .* \(1, 2\)"):
        UNet(multipliers=(1, 2), attention=(True,))
    with pytest.raises(ValueError, match=r"multipliers \(\)"):
        UNet(multipliers=(), attention=())
    with pytest.raises(ValueError, match="classes = 0 must be at least 1"):
        UNet(**SMALL, classes=0)
    assert UNet(**SMALL, classes=1).null_label == 1


def test_the_net_is_one_graph_for_torch_compile():
    """No value is looked at while the graph is captured: labels are checked only in ordinary calls."""
    net, x, y = build(classes=5), normal(2, 1, 4, 4).float(), torch.tensor([1, 5])
    net = net.float()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert_close(
        compiled(x, torch.tensor([3, 7]), y), net(x, torch.tensor([3, 7]), y), rtol=0, atol=1e-5
    )


def test_labels_on_a_device_are_not_looked_at():
    """That would wait for it. On the device "meta", which has shapes alone, a look raises."""
    net, x = (
        build(classes=5).to("meta"),
        torch.empty(2, 1, 4, 4, device="meta", dtype=torch.float64),
    )
    assert net(x, torch.tensor(3), torch.tensor([1, 5], device="meta")).shape == x.shape
