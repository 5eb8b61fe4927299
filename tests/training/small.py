"""A net of 40 weights, 32 images of 16 pixels and a run of 12 steps, for the tests of training."""

from pathlib import Path

import torch
from torch import nn

from diffusion_core.data import Images
from diffusion_core.schedules import NoiseSchedule, linear_betas
from diffusion_core.training import TrainConfig, train

ROOT = Path(__file__).resolve().parents[2]
T = 20
SCHEDULE = NoiseSchedule.from_betas(linear_betas(T, 1e-3, 0.3))


class Tiny(nn.Module):
    """A net of 40 weights that sees x, t and y; `dropout` makes its forward pass random."""

    def __init__(self, classes=3, dropout=0.0):
        super().__init__()
        self.classes = classes
        self.null_label = classes
        self.mix = nn.Conv2d(1, 2, 3, padding=1)
        self.out = nn.Conv2d(2, 1, 1)
        self.label = nn.Embedding((classes or 0) + 1, 2)
        self.time = nn.Linear(1, 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, t, y=None):
        y = torch.full((len(x),), self.null_label or 0) if y is None else y
        emb = self.label(y) + self.time(t.float()[:, None] / T)
        return self.out(self.dropout(torch.tanh(self.mix(x) + emb[:, :, None, None])))


def tiny(seed=0, **arguments):
    torch.manual_seed(seed)
    return Tiny(**arguments)


def images(n=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(n) % 3)


def config(**changes):
    return TrainConfig(
        **{
            "steps": 12,
            "batch_size": 8,
            "lr": 0.05,
            "warmup": 3,
            "ema_decay": 0.7,
            "label_dropout": 0.3,
            "precision": "fp32",
            "log_every": 1,
            "validate_every": 4,
            "checkpoint_every": 4,
            **changes,
        }
    )


def run(net=None, conf=None, **arguments):
    arguments = {"device": "cpu", **arguments}
    return train(net or tiny(), images(), SCHEDULE, conf or config(), **arguments)


def weights(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a, b):
    """Bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def losses(result):
    return [row["loss"] for row in result.history if "loss" in row]


class Stop(Exception):
    pass


def stop_at(step):
    def on_step(done, loss):
        if done == step:
            raise Stop

    return on_step
