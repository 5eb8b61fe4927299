"""LoRA from scratch: against peft, and by its own equations."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from diffusion_core._validate import UsageError
from diffusion_core.networks import (
    LoRAConv2d,
    LoRALinear,
    UNet,
    inject,
    lora_state_dict,
    merge,
    unload,
)
from diffusion_core.networks.lora import adapters


class Net(nn.Module):
    """A 3x3 and a strided convolution, a 1x1 one, and linear layers, one of them in a list."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)
        self.proj = nn.Conv2d(8, 6, 1)
        self.to_q = nn.Linear(6, 10, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(10, 4), nn.Dropout(0.0)])

    def forward(self, x):
        h = self.proj(self.conv2(torch.relu(self.conv1(x))))
        return self.to_out[0](torch.tanh(self.to_q(h.flatten(2).mT)))


ALL = ["conv1", "conv2", "proj", "to_q", "to_out.0"]
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def made(targets=ALL, r=4, alpha=8.0, learned=True):
    """A net with adapters; `learned`: B is no longer zero."""
    torch.manual_seed(0)
    net = Net()
    names = inject(net, targets, r, alpha)
    if learned:
        for layer in adapters(net).values():
            nn.init.normal_(layer.B, std=0.3)
    return net, names


def base():
    torch.manual_seed(0)
    return Net()


def test_the_formula():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(5, 3), r=2, alpha=6.0)
    nn.init.normal_(layer.B)
    x = torch.randn(7, 5)
    W, b = layer.base.weight, layer.base.bias
    assert_close(layer(x), x @ W.T + b + 6 / 2 * x @ layer.A.T @ layer.B.T)
    assert_close(layer.delta(), 3 * layer.B @ layer.A)
    assert torch.linalg.matrix_rank(layer.delta()) == 2
    assert layer.A.shape == (2, 5)
    assert layer.B.shape == (3, 2)


@pytest.mark.parametrize(("r", "alpha"), [(1, 1.0), (4, 8.0), (8, 2.0)])
def test_equals_peft(r, alpha):
    """The same A and B in peft's layers: the same output, and the same merged weights."""
    peft = pytest.importorskip("peft")
    ours, _ = made(r=r, alpha=alpha)
    config = peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=ALL)
    theirs = peft.inject_adapter_in_model(config, base())
    for name, layer in adapters(ours).items():
        their = theirs.get_submodule(name)
        for key in "AB":
            weight = getattr(their, f"lora_{key}")["default"].weight
            weight.data = getattr(layer, key).detach().view_as(weight).clone()
    with torch.no_grad():
        assert (ours(X) - base()(X)).abs().max() > 1e-2  # ten thousand times what is allowed below
        assert_close(ours(X), theirs(X), rtol=0, atol=1e-6)
        for name, layer in adapters(ours).items():
            delta = theirs.get_submodule(name).get_delta_weight("default")
            assert_close(layer.delta(), delta, rtol=0, atol=1e-6)
            theirs.get_submodule(name).merge()
        merge(ours)
        assert_close(ours(X), theirs(X), rtol=0, atol=1e-6)
        for name in ALL:
            weight = theirs.get_submodule(name).get_base_layer().weight
            assert_close(ours.get_submodule(name).weight, weight, rtol=0, atol=1e-6)


def test_a_is_drawn_as_peft_draws_it():
    """Uniform within 1 / sqrt(columns), the kernel's places counted."""
    layer = LoRAConv2d(nn.Conv2d(16, 4, 3), r=64)
    bound = (16 * 9) ** -0.5
    assert layer.A.abs().max() <= bound
    assert abs(layer.A.std() - bound / 3**0.5) < 0.02 * bound
    assert not layer.B.any()


def test_the_start_is_the_identity():
    net, _ = made(learned=False)
    assert torch.equal(net(X), base()(X))


def test_only_a_and_b_learn():
    net, names = made()
    net(X).square().sum().backward()
    learned = {name for name, p in net.named_parameters() if p.grad is not None}
    assert learned == {f"{name}.{key}" for name in names for key in "AB"}
    assert all(p.grad.any() for p in net.parameters() if p.grad is not None)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == learned


def test_at_the_start_only_b_has_a_gradient():
    """B is zero, so that A's gradient is, too: the first step moves B alone."""
    net, _ = made(learned=False)
    net(X).square().sum().backward()
    assert not any(layer.A.grad.any() for layer in adapters(net).values())
    assert all(layer.B.grad.any() for layer in adapters(net).values())


def test_merged_is_the_same_function_in_the_old_layers():
    net, _ = made()
    y = net(X)
    merge(net)
    assert_close(net(X), y, rtol=0, atol=1e-5)
    assert net.state_dict().keys() == base().state_dict().keys()
    assert not adapters(net)
    assert type(net.to_out[0]) is nn.Linear


def test_merged_convolutions_with_holes():
    """Dilation, which peft's own layer leaves out."""
    net = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=2, dilation=2))
    inject(net, ["0"])
    nn.init.normal_(net[0].B)
    y = net(X)
    merge(net)
    assert_close(net(X), y, rtol=0, atol=1e-5)


def test_unloaded_is_the_base_bit_by_bit():
    net, _ = made()
    unload(net)
    assert all(torch.equal(v, base().state_dict()[k]) for k, v in net.state_dict().items())
    assert torch.equal(net(X), base()(X))


def test_scale_0_is_the_base():
    net, _ = made(alpha=0.0)
    assert torch.equal(net(X), base()(X))


def test_the_state_dict_carries_an_adapter_over():
    net, names = made()
    saved = lora_state_dict(net)
    assert saved.keys() == {f"{name}.{key}" for name in names for key in "AB"}
    other, _ = made(learned=False)
    result = other.load_state_dict(saved, strict=False)
    assert not result.unexpected_keys
    assert torch.equal(other(X), net(X))


def test_names_are_found_by_their_end():
    """As peft does: whole parts of a name, "q" is not the end of "to_q"."""
    net, names = made(["to_q", "0"])
    assert names == ["to_q", "to_out.0"]
    assert isinstance(net.to_q, LoRALinear)
    assert not isinstance(net.conv1, LoRALinear)
    with pytest.raises(UsageError, match=r"ends in q; names: conv1, .*to_out\.0"):
        made(["q"])


def test_the_books_unet_takes_one():
    net = UNet(width=8, multipliers=(1,), attention=(True,))
    names = inject(net, ["conv1", "conv2"], r=2)
    assert len(names) == len(adapters(net)) > 2


def test_errors_leave_the_net_as_it_was():
    net = base()
    with pytest.raises(UsageError, match="ends in to_k, ff; names"):
        inject(net, ["to_q", "to_k", "ff"])
    with pytest.raises(UsageError, match=r"fits to_out \(ModuleList\)"):
        inject(net, ["to_q", "to_out"])
    assert not adapters(net)
    assert all(p.requires_grad for p in net.parameters())


def test_twice_is_refused():
    net, _ = made(["to_q"])
    with pytest.raises(UsageError, match=r"to_q \(LoRALinear\).*merged or unloaded first"):
        inject(net, ["to_q"])


@pytest.mark.parametrize("kind", [{"groups": 2}, {"padding_mode": "reflect", "padding": 1}])
def test_convolutions_that_it_would_get_wrong(kind):
    with pytest.raises(UsageError, match=r"0 \(Conv2d\)"):
        inject(nn.Sequential(nn.Conv2d(4, 4, 3, **kind)), ["0"])


def test_rank():
    with pytest.raises(UsageError, match="r = 0 must be at least 1"):
        LoRALinear(nn.Linear(2, 2), r=0)
    with pytest.raises(TypeError, match="expected int"):
        LoRALinear(nn.Linear(2, 2), r=1.5)


def test_precision_is_the_layers():
    layer = LoRALinear(nn.Linear(4, 4, dtype=torch.float64))
    assert layer.A.dtype == layer.B.dtype == torch.float64
