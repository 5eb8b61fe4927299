"""Training: one function of the step number, checked against a loop written by hand, against itself
when interrupted and killed, and against two processes."""

import copy
import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from diffusion_core.data import Images, from_uint8
from diffusion_core.ddpm import eps_loss, q_sample
from diffusion_core.files import read_safetensors
from diffusion_core.networks import UNet
from diffusion_core.schedules import NoiseSchedule, linear_betas
from diffusion_core.training import (
    CHECKPOINT,
    EMA,
    NanLoss,
    RunState,
    TrainConfig,
    draw_batch,
    elapsed,
    lr_at,
    p2_weights,
    resolve_precision,
    run_settings,
    steps_done,
    train,
    validation_loss,
)
from diffusion_core.training import config as settings_of
from diffusion_core.training import loop as training

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


# --- the step, written out by hand ---


def by_hand(net, data, conf, steps):
    """DDPM alg. 1 with Adam, clipping, learning rate and moving average written out, float64.

    Returns: weights, moving averages, losses.
    """
    net = copy.deepcopy(net).double()
    names = [name for name, _ in net.named_parameters()]
    theta = dict(net.named_parameters())
    m = {n: torch.zeros_like(p) for n, p in theta.items()}
    v = {n: torch.zeros_like(p) for n, p in theta.items()}
    shadow = {n: p.detach().clone() for n, p in theta.items()}
    beta_1, beta_2 = conf.betas
    trace = []
    for k in range(steps):
        g = torch.Generator().manual_seed(conf.seed * 1_000_003 + k)
        index = torch.randint(0, len(data.pixels), (conf.batch_size,), generator=g)
        t = torch.randint(1, T + 1, (conf.batch_size,), generator=g)
        eps = torch.randn(conf.batch_size, *data.pixels.shape[1:], generator=g).double()
        dropped = torch.rand(conf.batch_size, generator=g) < conf.label_dropout
        x_0 = data.pixels[index].double() / 127.5 - 1
        alpha_bar = torch.cumprod(1 - linear_betas(T, 1e-3, 0.3), 0)[t - 1][:, None, None, None]
        x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
        y = torch.where(dropped, 3, data.labels[index])
        emb = net.label(y) + net.time(t.double()[:, None] / T)
        predicted = net.out(torch.tanh(net.mix(x_t) + emb[:, :, None, None]))
        weight = (1 - alpha_bar) ** conf.p2_gamma
        loss = (weight * (predicted - eps) ** 2).mean()
        grads = dict(zip(names, torch.autograd.grad(loss, list(theta.values())), strict=True))
        norm = math.sqrt(sum((g**2).sum().item() for g in grads.values()))
        scale = min(1.0, conf.grad_clip / (norm + 1e-6))
        lr = conf.lr * min(1, (k + 1) / conf.warmup) * (1 + math.cos(math.pi * k / conf.steps)) / 2
        decay = min(conf.ema_decay, (1 + k) / (10 + k))
        with torch.no_grad():
            for n, p in theta.items():
                grad = scale * grads[n]
                m[n] = beta_1 * m[n] + (1 - beta_1) * grad
                v[n] = beta_2 * v[n] + (1 - beta_2) * grad**2
                m_hat, v_hat = m[n] / (1 - beta_1 ** (k + 1)), v[n] / (1 - beta_2 ** (k + 1))
                p -= lr * m_hat / (v_hat.sqrt() + 1e-8)
                shadow[n] = decay * shadow[n] + (1 - decay) * p
        trace.append(loss.item())
    return {n: p.detach() for n, p in theta.items()}, shadow, trace


@pytest.mark.parametrize(("grad_clip", "p2_gamma"), [(0.05, 0.0), (100.0, 0.0), (100.0, 1.5)])
def test_train_is_the_loop_written_by_hand(grad_clip, p2_gamma):
    """Loss, weights of t, Adam, clipping, learning rate, label dropout and moving average, all at
    once."""
    conf = config(grad_clip=grad_clip, p2_gamma=p2_gamma, seed=3)
    net = tiny()
    theta, shadow, trace = by_hand(net, images(), conf, conf.steps)
    result = run(net, conf)
    assert losses(result) == pytest.approx(trace, rel=1e-4)
    for name, value in result.net.named_parameters():
        assert_close(value, theta[name], rtol=0, atol=1e-4)
    for name, value in result.ema.named_parameters():
        assert_close(value, shadow[name], rtol=0, atol=1e-4)
    assert [row["step"] for row in result.history] == list(range(1, 13))


def test_the_net_is_trained_in_place_and_the_average_is_another_net():
    net = tiny()
    before = weights(net)
    result = run(net)
    assert result.net is net
    assert not result.net.training
    assert not result.ema.training
    assert not any(p.requires_grad for p in result.ema.parameters())
    assert all(not torch.equal(before[n], p) for n, p in net.named_parameters())
    assert all(p.grad is None for p in net.parameters())


def test_no_gradient_is_left_over_from_the_step_before():
    """With the gradients of step 0 left in place, step 1 of the loop by hand would differ; here the
    gradient that Adam sees is compared directly."""
    seen = []
    net = tiny()
    net.register_full_backward_pre_hook(lambda *_: seen.append([p.grad for p in net.parameters()]))
    run(net)
    assert len(seen) == 12
    assert all(grad is None or bool((grad == 0).all()) for grads in seen for grad in grads)


def test_training_on_one_image_learns_its_noise():
    """A single image is the one case with an exact answer: the noise can be read off x_t."""
    data = Images(torch.full((1, 1, 8, 8), 200, dtype=torch.uint8), torch.zeros(1).long())
    torch.manual_seed(0)
    net = UNet(width=8, multipliers=(1,), attention=(False,), classes=1)
    conf = config(steps=60, batch_size=16, lr=0.01, warmup=10, log_every=10)
    result = train(net, data, SCHEDULE, conf, device="cpu")
    assert losses(result)[-1] < 0.1


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


def test_a_validation_is_not_weighted():
    """The log's loss_by_t can be compared between weightings: it is that of eps alone."""
    held_out = images(8, seed=9)
    result = run(conf=config(p2_gamma=1.0), validation=held_out)
    (last,) = [row["loss_by_t"] for row in result.history if row["step"] == 12]
    assert last == pytest.approx(validation_loss(result.ema, held_out, SCHEDULE), abs=1e-6)


# --- what a step draws ---


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


# --- learning rate ---


def test_lr_at_by_its_formula():
    conf = config(steps=10, lr=2.0, warmup=4)
    half = [(1 + math.cos(math.pi * k / 10)) / 2 for k in range(10)]
    warm = [0.25, 0.5, 0.75] + [1.0] * 7
    expected = [2 * w * h for w, h in zip(warm, half, strict=True)]
    assert [lr_at(k, conf) for k in range(10)] == pytest.approx(expected, rel=1e-12)


def test_lr_at_starts_above_0_and_ends_near_0():
    conf = config(steps=1000, lr=1.0, warmup=0)
    assert lr_at(0, conf) == 1.0
    assert lr_at(500, conf) == pytest.approx(0.5)
    assert 0 < lr_at(999, conf) < 1e-5
    assert all(lr_at(k, conf) > lr_at(k + 1, conf) for k in range(999))


# --- moving average ---


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
        assert_close(ema.net.weight, shadow, rtol=0, atol=1e-3 * (1 + shadow.abs().max().item()) * 1e-2)
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


def test_a_row_of_the_log():
    conf = config(batch_size=8, log_every=2, validate_every=4)
    state = RunState(tiny(1), tiny(), None)
    for step, loss, seconds in ((2, 0.12345678, 3.14159), (3, 0.5, 1.0), (4, 0.5, 1.0)):
        state.step = step
        training._log(state, loss, seconds, images(4), SCHEDULE, conf)
    second, fourth = state.history
    assert second == {"step": 2, "loss": 0.123457, "images_per_s": 5.1, "seconds": 3.14}
    assert fourth["step"] == 4
    exact = validation_loss(tiny(), images(4), SCHEDULE)  # of the average, not of the net
    assert fourth["loss_by_t"] == [round(v, 6) for v in exact]


# --- interrupted, killed, resumed ---


class Stop(Exception):
    pass


def stop_at(step):
    def on_step(done, loss):
        if done == step:
            raise Stop

    return on_step


@pytest.mark.parametrize("stop", [4, 6, 11])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, stop, dropout):
    whole = run(tiny(dropout=dropout), folder=tmp_path / "whole")
    with pytest.raises(Stop):
        run(tiny(dropout=dropout), folder=tmp_path / "cut", on_step=stop_at(stop))
    torch.manual_seed(99)  # whatever has happened in between
    other_start = tiny(seed=99, dropout=dropout)
    steps = []
    resumed = run(
        other_start,
        folder=tmp_path / "cut",
        resume=True,
        on_step=lambda done, loss: steps.append(done),
    )
    same(weights(whole.net), weights(resumed.net))
    same(weights(whole.ema), weights(resumed.ema))
    assert losses(whole) == losses(resumed)
    assert steps == list(range(stop // 4 * 4 + 1, 13)), "at most checkpoint_every steps are lost"
    a, _ = read_safetensors(tmp_path / "whole" / CHECKPOINT)
    b, _ = read_safetensors(tmp_path / "cut" / CHECKPOINT)
    same(a, b)


def test_training_does_not_disturb_or_depend_on_the_global_generator():
    torch.manual_seed(5)
    a = run(tiny(dropout=0.5))
    torch.manual_seed(6)
    before = torch.get_rng_state()
    net = copy.deepcopy(tiny(dropout=0.5))
    torch.set_rng_state(before)
    b = run(net)
    same(weights(a.net), weights(b.net))
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_is_on_while_training_whatever_mode_the_net_came_in():
    modes = []
    net = tiny(dropout=0.5).eval()
    net.register_forward_pre_hook(lambda net, arguments: modes.append(net.training))
    run(net, config(steps=3, validate_every=1), validation=images(4))
    assert modes == ([True] + [False] * 10) * 3, "a step, then ten buckets of the average"


def test_dropout_differs_between_steps_seeds_and_processes_and_repeats():
    def drawn(k=3, process=0, seed=0):
        place = SimpleNamespace(device=torch.device("cpu"), process_index=process)
        with training._dropout_seeded(k, config(seed=seed), place):
            return torch.rand(4).tolist()

    assert drawn() == drawn()
    batches = torch.rand(4, generator=torch.Generator().manual_seed(3)).tolist()
    assert drawn() != batches, "masks share no stream with draw_batch"
    others = [drawn(k=4), drawn(process=1), drawn(seed=1), drawn(k=4 + 8, process=1), drawn(k=2, seed=1)]
    assert all(other != drawn() for other in others)


@pytest.mark.parametrize("seed", [0, 3, 2_000, 9_000])  # 2,000 sets the highest of the 32 bits
def test_the_seed_of_dropout_stays_what_it_is(seed):
    """Another formula would make a resumed run draw other masks than the run that was stopped."""
    place = SimpleNamespace(device=torch.device("cpu"), process_index=1)
    with training._dropout_seeded(5, config(seed=seed), place):
        assert torch.initial_seed() == (seed * 1_000_003 + 5 + 2 * 2_654_435_769) % 4_294_967_296


def test_resuming_a_finished_run_returns_it(tmp_path):
    first = run(folder=tmp_path)
    again = run(tiny(seed=4), folder=tmp_path, resume=True)
    same(weights(first.net), weights(again.net))
    same(weights(first.ema), weights(again.ema))
    assert first.history == again.history


def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path):
    same(weights(run(folder=tmp_path, resume=True).net), weights(run().net))


def test_a_folder_with_a_checkpoint_is_not_overwritten(tmp_path):
    run(folder=tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):
        run(folder=tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


KILLED = """
import sys, time, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from tests.training.test_loop import config, run
print("ready", flush=True)
result = run(conf=config(steps={steps}, checkpoint_every=5), folder={folder!r}, resume=True,
             on_step=lambda done, loss: (print(done, flush=True), time.sleep(0.005)))
"""


def start_run(folder, steps):
    code = KILLED.format(root=str(ROOT), steps=steps, folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def one_thread():
    """Sums are rounded in another order with another number of threads: both processes use one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_at_a_random_moment_it_loses_only_the_steps_since_the_last_checkpoint(
    tmp_path, one_thread
):
    steps = 200
    delay = int.from_bytes(os.urandom(2)) / 2**16 * 0.3
    with start_run(tmp_path, steps) as process:
        assert process.stdout.readline() == "ready\n"
        seen = [int(process.stdout.readline()) for _ in range(12)]
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        seen += [int(line) for line in process.stdout if line.endswith("\n")]
    assert process.returncode == -signal.SIGKILL
    _, meta = read_safetensors(tmp_path / CHECKPOINT)  # whole, whenever the kill came
    kept = int(meta["step"])
    assert kept % 5 == 0
    assert seen[-1] - 5 <= kept <= seen[-1] + 5, (kept, seen[-1], delay)
    conf = config(steps=steps, checkpoint_every=5)
    resumed = run(tiny(seed=9), conf, folder=tmp_path, resume=True)
    same(weights(resumed.net), weights(run(conf=conf).net))


def test_seconds_add_up_over_the_parts_of_a_run(tmp_path, monkeypatch):
    clock = [100.0]

    def tick():
        clock[0] += 0.5
        return clock[0]

    monkeypatch.setattr(training.time, "perf_counter", tick)
    with pytest.raises(Stop):
        run(folder=tmp_path, on_step=stop_at(8))
    clock[0] += 1000  # the pause does not count
    result = run(folder=tmp_path, resume=True)
    assert [row["seconds"] for row in result.history] == [0.5 * n for n in range(1, 13)]
    assert result.history[-1]["images_per_s"] == 16.0
    assert elapsed(result.history) == 6.0


def test_elapsed_is_that_of_the_last_logged_step():
    rows = [
        {"step": 5, "images_per_s": 40.0, "seconds": 1.0},
        {"step": 10, "images_per_s": 20.0, "seconds": 4.5},
        {"step": 12, "loss_by_t": [1.0]},
    ]
    assert elapsed(rows) == 4.5
    assert elapsed([]) == 0


# --- what can go wrong with files ---


def test_a_nan_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    net = tiny()
    calls = []

    def poison(module, arguments, output):
        calls.append(1)
        return output * math.nan if len(calls) == 7 else output

    net.out.register_forward_hook(poison)
    with pytest.raises(NanLoss, match=r"became nan at step 6;.*still holds step 4") as error:
        run(net, folder=tmp_path)
    assert "lr" in str(error.value)
    good = run(conf=config(), on_step=None)
    resumed = run(tiny(seed=8), folder=tmp_path, resume=True)
    same(weights(good.net), weights(resumed.net))


@pytest.mark.parametrize("bad", [5, 7, 11])  # between checkpoints, at one, at the last step
def test_an_infinite_gradient_stops_the_run_before_it_reaches_the_weights(tmp_path, bad):
    net = tiny()
    calls = []

    def poison(gradient):
        calls.append(1)
        return gradient * math.inf if len(calls) == bad + 1 else gradient

    net.out.weight.register_hook(poison)
    kept = bad // 4 * 4
    with pytest.raises(NanLoss, match=rf"gradient became (nan|inf) at step {bad};.*holds step {kept}"):
        run(net, folder=tmp_path)
    resumed = run(tiny(seed=8), folder=tmp_path, resume=True)
    same(weights(run().net), weights(resumed.net))


@pytest.mark.parametrize("folder", [True, False])
def test_an_infinite_loss_stops_a_run_that_has_no_checkpoint_yet(tmp_path, folder):
    net = tiny()
    with torch.no_grad():
        net.out.weight.fill_(1e30)
    with pytest.raises(NanLoss, match=r"became inf at step 0\. Try"):
        run(net, folder=tmp_path if folder else None)


def test_a_net_whose_training_stopped_is_without_autocast_again():
    net, x, t = tiny(), torch.ones(2, 1, 4, 4), torch.tensor([1, 2])
    before = net(x, t)
    handle = net.out.register_forward_hook(lambda module, arguments, output: output * math.nan)
    with pytest.raises(NanLoss, match="at step 0"):
        run(net, config(precision="bf16"))
    handle.remove()
    assert torch.equal(net(x, t), before)


def test_a_full_disk_is_reported_and_the_previous_checkpoint_stays(tmp_path, monkeypatch):
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Stop):
        run(folder=tmp_path, on_step=stop_at(4))
    before = (tmp_path / CHECKPOINT).read_bytes()
    monkeypatch.setattr("diffusion_core.files.os.fsync", full)
    with pytest.raises(OSError, match=r"No space left.*needs [0-9.]+ MiB.*previous file is kept"):
        run(folder=tmp_path, resume=True)
    assert len(calls) == 1
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT], "no half file is left"
    monkeypatch.undo()
    same(weights(run(folder=tmp_path, resume=True).net), weights(run().net))


@pytest.mark.parametrize("avx512", [True, False, None])
@pytest.mark.parametrize("amx", [True, False])
def test_either_unit_of_the_processor_is_enough(monkeypatch, avx512, amx):
    """None: a version of torch that cannot say whether there is AVX-512 for bfloat16."""
    name = "_is_avx512_bf16_supported"
    if avx512 is None:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    else:
        monkeypatch.setattr(torch.cpu, name, lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert settings_of._cpu_has_bf16_units() == (bool(avx512) or amx)


@pytest.mark.parametrize("missing", ["mkldnn", "its bfloat16", "the units", None])
def test_bf16_needs_library_and_processor(monkeypatch, missing):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: missing != "mkldnn")
    supported = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: missing != "its bfloat16")
    monkeypatch.setattr(torch.ops, "mkldnn", supported)
    monkeypatch.setattr(settings_of, "_cpu_has_bf16_units", lambda: missing != "the units")
    assert settings_of._has_bf16("cpu") == (missing is None)


def test_validation_in_chunks_is_the_mean_over_all_images():
    net, data = tiny(), images(130)
    assert len(data.pixels) > training._CHUNK
    x_0 = from_uint8(data.pixels)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(20200619))
    t = torch.full((130,), 5)  # the middle of the first of two halves of T = 20
    expected = eps_loss(lambda x, t: net(x, t, data.labels), x_0, t, eps, SCHEDULE).mean()
    first, _ = validation_loss(net, data, SCHEDULE, buckets=2)
    assert first == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "pickle"])
def test_a_damaged_checkpoint_is_refused_and_never_unpickled(tmp_path, damage):
    run(folder=tmp_path)
    path = tmp_path / CHECKPOINT
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("not a checkpoint, but long enough to be one")
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        torch.save({"step": 3}, path)
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        run(folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        steps_done(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match=r"is not a checkpoint of train\(\)"):
        run(folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"is not a checkpoint of train\(\)"):
        steps_done(tmp_path / CHECKPOINT)


@pytest.mark.parametrize(
    "change", [{"lr": 0.01}, {"seed": 1}, {"steps": 13}, {"batch_size": 16}, {"betas": (0.8, 0.9)}, {"p2_gamma": 0.5}]
)
def test_a_checkpoint_of_another_configuration_is_refused(tmp_path, change):
    run(folder=tmp_path)
    name = next(iter(change))
    with pytest.raises(ValueError, match=rf"another configuration .{name}: .*there.*here"):
        run(conf=config(**change), folder=tmp_path, resume=True)


@pytest.mark.parametrize("what", ["pixels", "labels", "schedule"])
def test_a_checkpoint_of_other_data_or_another_schedule_is_refused(tmp_path, what):
    run(folder=tmp_path)
    data, schedule = images(), SCHEDULE
    if what == "schedule":
        schedule = NoiseSchedule.from_betas(linear_betas(T, 1e-3, 0.2))
    elif what == "labels":
        data = Images(data.pixels, data.labels.flip(0))
    else:
        data = Images(data.pixels.flip(0), data.labels)
    name = "schedule" if what == "schedule" else "data"
    with pytest.raises(ValueError, match=rf"another configuration .{name}: '\w+' there, '\w+' here"):
        train(tiny(), data, schedule, config(), device="cpu", folder=tmp_path, resume=True)


def test_the_hashes_of_data_and_schedule_stay_what_they_are():
    """Checkpoints of yesterday are resumed with them."""
    settings = run_settings(config(), images(), SCHEDULE)
    assert settings.items() >= dataclasses.asdict(config()).items()
    assert (settings["data"], settings["schedule"]) == ("13f97f26e1e15efd", "5643f67c66a605ba")


def test_a_checkpoint_of_another_net_is_refused(tmp_path):
    run(folder=tmp_path)
    with pytest.raises(ValueError, match="belongs to another net"):
        run(tiny(classes=5), folder=tmp_path, resume=True)


# --- validation ---


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


def test_the_log_has_the_steps_asked_for():
    result = run(conf=config(steps=10, log_every=4))
    assert [row["step"] for row in result.history] == [4, 8, 10]
    json.dumps(result.history)


# --- configuration, devices, processes ---


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("steps", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("lr", 0.0, "above 0 and finite"),
        ("lr", -1e-3, "above 0 and finite"),
        ("lr", math.inf, "above 0 and finite"),
        ("lr", math.nan, "above 0 and finite"),
        ("warmup", -1, "at least 0"),
        ("betas", (0.9, 1.0), r"two numbers in \[0, 1\)"),
        ("betas", (-0.1, 0.9), r"two numbers in \[0, 1\)"),
        ("betas", (0.9,), r"two numbers in \[0, 1\)"),
        ("grad_clip", 0.0, "above 0"),
        ("ema_decay", 1.0, r"in \[0, 1\)"),
        ("ema_decay", -0.1, r"in \[0, 1\)"),
        ("label_dropout", -0.1, r"in \[0, 1\]"),
        ("label_dropout", 1.1, r"in \[0, 1\]"),
        ("p2_gamma", -0.1, "at least 0 and finite"),
        ("p2_gamma", math.inf, "at least 0 and finite"),
        ("p2_gamma", math.nan, "at least 0 and finite"),
        ("precision", "fp16", r"one of \('auto', 'bf16', 'fp32'\)"),
        ("log_every", 0, "at least 1"),
        ("validate_every", 0, "at least 1"),
        ("checkpoint_every", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("seed", 2**32, r"below 2\*\*32"),
    ],
)
def test_a_configuration_out_of_range_is_named(field, value, right):
    with pytest.raises(ValueError, match=rf"{field} = .* must be {right}"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("field", ["steps", "batch_size", "warmup", "seed", "log_every", "validate_every", "checkpoint_every"])
def test_what_is_counted_is_whole(field):
    assert TrainConfig(seed=4_294_967_295).seed == 4_294_967_295
    with pytest.raises(TypeError, match=rf"{field} = 2\.5 is float, expected int"):
        TrainConfig(**{field: 2.5})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 1),
        ("batch_size", 1),
        ("warmup", 0),
        ("ema_decay", 0.0),
        ("label_dropout", 0.0),
        ("label_dropout", 1.0),
        ("p2_gamma", 0.0),
        ("betas", (0.0, 0.0)),
        ("log_every", 1),
        ("validate_every", 1),
        ("checkpoint_every", 1),
        ("precision", "bf16"),
    ],
)
def test_the_edges_of_the_configuration_are_allowed(field, value):
    assert getattr(TrainConfig(**{field: value}), field) == value


def test_bf16_after_fp32_in_one_program_and_back():
    """Accelerate keeps a state for the whole program; each run chooses its precision anew."""
    full = run()
    dtypes = []

    class Spy(Tiny):
        def forward(self, x, t, y=None):
            inner = self.mix(x)
            dtypes.append(inner.dtype)
            return super().forward(x, t, y)

    torch.manual_seed(0)
    half = train(Spy(), images(), SCHEDULE, config(precision="bf16"), device="cpu")
    assert set(dtypes) == {torch.bfloat16}
    assert losses(half) == pytest.approx(losses(full), rel=0.05)
    assert losses(half) != losses(full)
    assert all(p.dtype == torch.float32 for p in half.net.parameters())
    half.net(torch.zeros(1, 1, 4, 4), torch.tensor([1]))
    assert dtypes[-1] == torch.float32, "the autocast ends with the training"
    same(weights(run().net), weights(full.net))


TWO = """
import json, sys, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from tests.training.test_loop import config, run, tiny
net, sizes = tiny(), []
net.register_forward_pre_hook(lambda net, arguments: sizes.append(len(arguments[0])))
result = run(net, config(steps=30, log_every=1), folder={folder!r})
if torch.distributed.get_rank() == 0:
    torch.save({{"sizes": sizes, "losses": [r["loss"] for r in result.history],
                 "net": result.net.state_dict(), "ema": result.ema.state_dict()}}, {out!r})
torch.distributed.destroy_process_group()
"""


def test_two_processes_follow_the_path_of_one(tmp_path):
    """Two CPU processes (gloo), started as `accelerate launch` starts GPUs: the same global batch,
    the same losses, one checkpoint that one process can resume."""
    script, out = tmp_path / "two.py", tmp_path / "out.pt"
    script.write_text(
        TWO.format(root=str(ROOT), folder=str(tmp_path / "run"), out=str(out)), encoding="utf8"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"),
            *("--nproc-per-node", "2", str(script)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = torch.load(out, weights_only=True)
    assert two["sizes"] == [4] * 30, "each process sees its half of the batch of 8"
    one = run(conf=config(steps=30, log_every=1))
    gap = max(abs(a - b) for a, b in zip(losses(one), two["losses"], strict=True))
    print(f"largest difference of the loss over 30 steps, 2 processes against 1: {gap:.2e}")
    assert gap <= 1e-5
    for name, value in one.ema.state_dict().items():
        assert_close(two["ema"][name], value, rtol=0, atol=1e-4)
    resumed = run(tiny(seed=5), config(steps=30, log_every=1), folder=tmp_path / "run", resume=True)
    assert_close(resumed.net.mix.weight, one.net.mix.weight, rtol=0, atol=1e-4)


def test_a_batch_that_does_not_split_is_refused():
    class Three:
        num_processes, process_index = 3, 0

    with pytest.raises(ValueError, match="batch_size = 8 does not split evenly over 3 processes"):
        training._my_rows(8, Three())


def test_every_row_belongs_to_one_process():
    class Process:
        num_processes = 4

        def __init__(self, index):
            self.process_index = index

    rows = [list(range(12))[training._my_rows(12, Process(i))] for i in range(4)]
    assert rows == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_on_step_sees_every_step_and_its_loss():
    seen = []
    result = run(on_step=lambda done, loss: seen.append((done, round(loss, 6))))
    assert seen == [(row["step"], row["loss"]) for row in result.history]


def test_bf16_is_asked_for_only_where_there_are_units_for_it(monkeypatch):
    monkeypatch.setattr(settings_of, "_has_bf16", lambda device: device == "cpu")
    assert resolve_precision("auto", "cpu") == "bf16"
    assert resolve_precision("auto") == "fp32"
    assert resolve_precision("bf16") == "bf16"
    assert resolve_precision("fp32", "cpu") == "fp32"
    assert training._accelerator("fp32", "cpu").mixed_precision == "no"
    assert training._accelerator("bf16", "cpu").mixed_precision == "bf16"


@pytest.mark.parametrize("there", [True, False])
def test_a_checkpoint_says_the_precision_it_was_made_with(tmp_path, monkeypatch, there):
    """So that "auto" on a machine with bfloat16 units is not resumed on one without."""
    monkeypatch.setattr(settings_of, "_has_bf16", lambda device: there)
    run(conf=config(precision="auto"), folder=tmp_path)
    monkeypatch.setattr(settings_of, "_has_bf16", lambda device: not there)
    with pytest.raises(ValueError, match=r"another configuration .precision: "):
        run(conf=config(precision="auto"), folder=tmp_path, resume=True)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"device = 'banana' is not available.*choose 'cpu'"):
        run(device="banana")
    with pytest.raises(ValueError, match="device = 'meta': training would run on"):
        run(device="meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_training_on_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="device = 'cuda' is not available"):
        run(device="cuda")


def test_units_for_bf16_are_looked_for_where_the_run_will_be(monkeypatch):
    asked = []

    def on_gpu(including_emulation):
        asked.append(including_emulation)
        return True

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", on_gpu)
    monkeypatch.setattr(settings_of, "_cpu_has_bf16_units", lambda: False)
    assert settings_of._has_bf16(None)
    assert settings_of._has_bf16("cuda")
    assert asked == [False, False], "emulated bf16 is slow"
    assert not settings_of._has_bf16("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not settings_of._has_bf16(None)


@pytest.mark.parametrize(
    ("wanted", "there", "fits"),
    [
        (None, "cuda:0", True),
        ("cuda:0", "cuda", True),
        ("cuda", "cuda:0", True),
        ("cpu", "cpu", True),
        ("cuda:1", "cuda:0", False),
        ("cuda:0", "cuda:1", False),
        ("cuda:0", "cpu", False),
    ],
)
def test_the_gpu_that_is_asked_for_is_the_one_that_trains(monkeypatch, wanted, there, fits):
    made = SimpleNamespace(device=torch.device(there))
    asked = []
    monkeypatch.setattr("accelerate.Accelerator", lambda **arguments: asked.append(arguments) or made)
    monkeypatch.setattr(training, "check_device", torch.device)
    if fits:
        assert training._accelerator("fp32", wanted) is made
        assert asked == [{"mixed_precision": "no", "cpu": wanted == "cpu"}]
    else:
        with pytest.raises(ValueError, match=f"would run on {there}; choose '{there[:3]}"):
            training._accelerator("fp32", wanted)


class Wrapped(nn.Module):
    """As DistributedDataParallel does: it calls the net, and shows none of its attributes."""

    def __init__(self, net):
        super().__init__()
        self.inside, self.labels = [net], []

    def forward(self, x, t, y=None):
        self.labels.append(y)
        return self.inside[0](x, t, y)


def test_the_wrapped_net_is_the_one_that_is_called_and_the_net_says_what_its_labels_are(monkeypatch):
    """On several processes only the wrapped net averages gradients, and only the net inside knows its classes."""
    made = []

    @contextmanager
    def prepared(net, optimizer, accelerator):
        made.append(Wrapped(net))
        yield made[0], optimizer

    monkeypatch.setattr(training, "_prepared", prepared)
    plain = run(tiny())
    assert len(made[0].labels) == 12
    assert all(y is not None for y in made[0].labels)
    monkeypatch.undo()
    same(plain.net.state_dict(), run(tiny()).net.state_dict())


def test_processes_end_together(monkeypatch):
    """The main process still writes the last checkpoint when the others are done."""
    waited, make = [], training._accelerator

    def spied(*arguments):
        accelerator = make(*arguments)
        monkeypatch.setattr(accelerator, "wait_for_everyone", lambda: waited.append(True))
        return accelerator

    monkeypatch.setattr(training, "_accelerator", spied)
    run()
    assert waited == [True]


def test_nothing_is_left_of_the_devices_of_a_run_before():
    from accelerate.state import PartialState

    training._accelerator("fp32", "cpu")
    PartialState._shared_state["left over"] = True
    training._accelerator("fp32", "cpu")
    assert "left over" not in PartialState._shared_state
