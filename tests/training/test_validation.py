"""The loss on images that are not trained on."""

import math

import pytest
import torch
from torch import nn

from diffusion_core.data import from_uint8
from diffusion_core.ddpm import eps_loss, q_sample
from diffusion_core.training import validation as training
from diffusion_core.training import validation_loss
from tests.training.small import SCHEDULE, T, config, images, run, tiny


def test_a_validation_is_not_weighted():
    """The log's loss_by_t can be compared between weightings: it is that of eps alone."""
    held_out = images(8, seed=9)
    result = run(conf=config(p2_gamma=1.0), validation=held_out)
    (last,) = [row["loss_by_t"] for row in result.history if row["step"] == 12]
    assert last == pytest.approx(validation_loss(result.ema, held_out, SCHEDULE), abs=1e-6)


def test_validation_in_chunks_is_the_mean_over_all_images():
    net, data = tiny(), images(130)
    assert len(data.pixels) > training._CHUNK
    x_0 = from_uint8(data.pixels)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(20200619))
    t = torch.full((130,), 5)  # the middle of the first of two halves of T = 20
    expected = eps_loss(lambda x, t: net(x, t, data.labels), x_0, t, eps, SCHEDULE).mean()
    first, _ = validation_loss(net, data, SCHEDULE, buckets=2)
    assert first == pytest.approx(expected.item(), rel=1e-5)


class Half(nn.Module):
    """Predicts half of x_t, plus a term in y: its loss is known in closed form."""

    classes = 3
    null_label = 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t, y=None):
        return self.weight * x + (y.float() / 10)[:, None, None, None]


@pytest.mark.parametrize(("buckets", "draws"), [(10, 2), (5, 4), (2, 10), (4, 1)])
def test_validation_loss_by_hand(buckets, draws):
    data = images(16)
    got = validation_loss(Half(), data, SCHEDULE, buckets, draws)
    generator = torch.Generator().manual_seed(20200619)
    x_0 = from_uint8(data.pixels)
    eps = torch.randn(x_0.shape, generator=generator)
    width = T / buckets
    for b in range(buckets):
        times = [math.ceil(b * width + (d + 0.5) * width / draws) for d in range(draws)]
        assert all(b * width < t <= (b + 1) * width for t in times)
        expected = []
        for t in times:
            x_t = q_sample(x_0, t, eps, SCHEDULE)
            residual = 0.5 * x_t + (data.labels / 10)[:, None, None, None] - eps
            expected.append((residual**2).mean())
        assert got[b] == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_validation_sees_every_t_when_there_are_enough_draws():
    seen = []

    class Spy(Half):
        def forward(self, x, t, y=None):
            seen.extend(t.unique().tolist())
            return super().forward(x, t, y)

    validation_loss(Spy(), images(4), SCHEDULE, buckets=10, draws=2)
    assert seen == list(range(1, T + 1))


def test_validation_is_of_the_average_at_the_steps_asked_for():
    conf = config(steps=10)
    result = run(conf=conf, validation=images(8, seed=1))
    rows = {row["step"]: row["loss_by_t"] for row in result.history if "loss_by_t" in row}
    assert list(rows) == [4, 8, 10]
    expected = validation_loss(result.ema, images(8, seed=1), SCHEDULE)
    assert rows[10] == pytest.approx(expected, abs=1e-6)
    assert len(rows[4]) == 10
