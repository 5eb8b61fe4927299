"""The moving average of the weights."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from diffusion_core.training import EMA
from tests.training.small import same, weights


def test_ema_is_its_formula_step_by_step():
    net = nn.Linear(2, 1)
    ema = EMA(net, 0.8)
    shadow = net.weight.detach().clone().double()
    for k in range(60):
        with torch.no_grad():
            net.weight += torch.tensor([[0.1, -0.3]]) * (k + 1)
        ema.update(net, k)
        decay = min(0.8, (1 + k) / (10 + k))
        shadow = decay * shadow + (1 - decay) * net.weight.detach().double()
        assert_close(
            ema.net.weight.double(),
            shadow,
            rtol=0,
            atol=1e-3 * (1 + shadow.abs().max().item()) * 1e-2,
        )
    assert ema.decay_at(0) == 0.1
    assert ema.decay_at(34) == pytest.approx(35 / 44)
    assert ema.decay_at(35) == 0.8


def test_ema_forgets_its_start_as_fast_as_it_says():
    """The start's share after n updates is the product of the decays: 0.905 after 1,000 at 0.9999
    without the warm-up, of the order of 1e-25 with it."""
    net = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        net.weight.fill_(1.0)
    ema = EMA(net, 0.9999)
    with torch.no_grad():
        net.weight.fill_(0.0)
    product = 1.0
    for k in range(1000):
        ema.update(net, k)
        product *= (1 + k) / (10 + k)
    assert ema.net.weight.item() == pytest.approx(product, rel=1e-9)
    assert product < 1e-20
    assert pytest.approx(0.905, abs=5e-4) == 0.9999**1000


def test_ema_copies_buffers_and_leaves_the_net_alone():
    net = nn.BatchNorm1d(2)
    ema = EMA(net, 0.9)
    net(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    before = weights(net)
    ema.update(net, 0)
    same(before, weights(net))
    assert_close(ema.net.running_mean, net.running_mean, rtol=0, atol=0)
    assert ema.net.num_batches_tracked == 1


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5])
def test_ema_refuses_a_decay_outside_its_domain(decay):
    with pytest.raises(ValueError, match=f"decay = {decay}"):
        EMA(nn.Linear(1, 1), decay)


def test_an_ema_without_memory_is_the_net():
    net, ema = nn.Linear(1, 1), EMA(nn.Linear(1, 1), 0.0)
    ema.update(net, 5)
    same(weights(net), weights(ema.net))
