"""What a step draws, and its loss."""

import math

import pytest
import torch
from torch.testing import assert_close

from diffusion_core.training import draw_batch, p2_weights, train
from tests.training.small import SCHEDULE, T, Tiny, config, images, same


def test_p2_weights_are_their_formula():
    """1 / (1 + SNR)^gamma, from the ratio itself; 0 is the simple loss, for every t."""
    t = torch.arange(1, T + 1)
    for gamma in (0.5, 1.0, 2.0):
        expected = (1 + SCHEDULE.snr(t)) ** -gamma
        assert_close(p2_weights(SCHEDULE, t, gamma), expected, rtol=0, atol=1e-12)
    assert torch.equal(p2_weights(SCHEDULE, t, 0.0), torch.ones(T, dtype=torch.float64))
    for outside in (-1, T + 1):
        with pytest.raises(ValueError, match=f"t = {outside}"):
            p2_weights(SCHEDULE, torch.tensor([1, outside]), 0.5)


def test_draw_batch_has_the_right_ranges_and_rates():
    conf = config(batch_size=40_000, label_dropout=0.3)
    batch = draw_batch(5, conf, 7, torch.Size((1, 1, 1)), T)
    for drawn, low, high in ((batch.index, 0, 6), (batch.t, 1, T)):
        assert (drawn.min().item(), drawn.max().item()) == (low, high)
        counts = torch.bincount(drawn, minlength=high + 1)[low:].double()
        expected = len(drawn) / len(counts)
        assert ((counts - expected).abs() < 5 * expected**0.5).all(), "uniform"
    assert batch.eps.shape == (40_000, 1, 1, 1)
    assert batch.eps.mean().abs() < 4 / 200
    assert (batch.eps.var() - 1).abs() < 4 * math.sqrt(2) / 200
    rate = batch.dropped.double().mean()
    assert (rate - 0.3).abs() < 4 * math.sqrt(0.21 / 40_000)


@pytest.mark.parametrize(("p", "rate"), [(0.0, 0.0), (1.0, 1.0)])
def test_label_dropout_never_and_always(p, rate):
    batch = draw_batch(0, config(label_dropout=p, batch_size=500), 7, torch.Size((1,)), T)
    assert batch.dropped.double().mean() == rate


def test_draw_batch_depends_on_seed_and_step_alone():
    def draw(k, seed):
        return draw_batch(k, config(seed=seed), 1000, torch.Size((1, 4, 4)), 1000)

    torch.manual_seed(1)
    a = draw(7, 0)
    torch.manual_seed(2)
    same(a._asdict(), draw(7, 0)._asdict())
    others = [draw(8, 0), draw(7, 1), draw(6, 0)]
    assert not any(torch.equal(a.eps, other.eps) for other in others)
    assert not any(torch.equal(a.index, other.index) for other in others)
    drawn = {tuple(draw(k, seed).index.tolist()) for k in range(50) for seed in range(4)}
    assert len(drawn) == 200, "no step repeats another one"


def test_dropped_labels_become_the_null_label_and_others_do_not():
    seen = []

    class Spy(Tiny):
        def forward(self, x, t, y=None):
            seen.append(y.clone())
            return super().forward(x, t, y)

    torch.manual_seed(0)
    conf = config()
    train(Spy(), images(), SCHEDULE, conf, device="cpu")
    for k, y in enumerate(seen):
        batch = draw_batch(k, conf, 32, torch.Size((1, 4, 4)), T)
        expected = images().labels[batch.index]
        expected[batch.dropped] = 3
        assert y.tolist() == expected.tolist()
    assert 0 < sum(y.eq(3).sum().item() for y in seen) < 12 * 8


def test_a_net_without_classes_gets_no_labels():
    seen = []

    class Spy(Tiny):
        def forward(self, x, t, y=None):
            seen.append(y)
            return super().forward(x, t, y)

    torch.manual_seed(0)
    train(Spy(classes=None), images(), SCHEDULE, config(steps=2), device="cpu")
    assert seen == [None, None]
