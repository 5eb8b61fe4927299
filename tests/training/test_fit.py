"""The loop for any loss: the loop written by hand, what it leaves alone, what stops it, how it goes on."""

import math
import signal

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from diffusion_core.training import CHECKPOINT, NanLoss, TrainConfig, fit, lr_at, steps_done
from tests.training.small import Stop, losses, same, stop_at, weights


def net_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def config(**changes):
    defaults = {
        "steps": 12,
        "lr": 0.05,
        "warmup": 3,
        "ema_decay": 0.7,
        "precision": "fp32",
        "log_every": 1,
        "checkpoint_every": 4,
    }
    return TrainConfig(**{**defaults, **changes})


def loss_with(net):
    def loss_of_step(k):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(k)).to(net[0].weight.dtype)
        return (net(x) - x.sum(1, keepdim=True)).square().mean()

    return loss_of_step


def run(net=None, conf=None, **arguments):
    net = net or net_of()
    return fit(net, loss_with(net), conf or config(), **arguments)


@pytest.mark.parametrize("grad_clip", [0.05, 100.0])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_it_is_the_loop_written_by_hand(grad_clip, scale):
    """Adam, clipping, learning rate with its factors and moving average, in float64."""
    conf = config(grad_clip=grad_clip)
    net = net_of().double()
    loss_of_step, theta = loss_with(net), dict(net.named_parameters())
    m = {n: torch.zeros_like(p) for n, p in theta.items()}
    v = {n: torch.zeros_like(p) for n, p in theta.items()}
    shadow, trace = {n: p.detach().clone() for n, p in theta.items()}, []
    beta_1, beta_2 = conf.betas
    for k in range(conf.steps):
        loss = loss_of_step(k)
        grads = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
        norm = math.sqrt(sum(g.square().sum().item() for g in grads.values()))
        decay = min(conf.ema_decay, (1 + k) / (10 + k))
        with torch.no_grad():
            for n, p in theta.items():
                g = grads[n] * min(1.0, grad_clip / (norm + 1e-6))
                m[n] = beta_1 * m[n] + (1 - beta_1) * g
                v[n] = beta_2 * v[n] + (1 - beta_2) * g**2
                m_hat, v_hat = m[n] / (1 - beta_1 ** (k + 1)), v[n] / (1 - beta_2 ** (k + 1))
                lr = lr_at(k, conf) * (scale if n.startswith("0.") else 1)
                p -= lr * m_hat / (v_hat.sqrt() + 1e-8)
                shadow[n] = decay * shadow[n] + (1 - decay) * p
        trace.append(loss.item())
    result = run(conf=conf, lr_scales={"0.": scale})
    assert losses(result) == pytest.approx(trace, rel=1e-4)
    assert [row["step"] for row in result.history] == list(range(1, 13))
    for name, value in result.net.named_parameters():
        assert_close(value.double(), theta[name].detach(), rtol=0, atol=1e-4)
    for name, value in result.ema.named_parameters():
        assert_close(value.double(), shadow[name], rtol=0, atol=1e-4)


def test_the_net_is_trained_in_place_and_ends_in_evaluation():
    net = net_of()
    modes = []
    net.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    net.eval()
    result = run(net)
    assert result.net is net
    assert modes == [True] * 12
    assert not net.training and not result.ema.training
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("scales", [None, {"2": 0.5}])
def test_parameters_that_want_no_gradient_do_not_move(tmp_path, scales):
    """Also over a stop and a resumption: a checkpoint holds a frozen part, and no more."""

    def frozen(seed):
        net = net_of(seed)
        net[0].requires_grad_(False)
        return net

    before = weights(frozen(0)[0])
    whole = run(frozen(0), lr_scales=scales)
    same(weights(whole.net[0]), before)
    assert not torch.equal(whole.net[2].weight, frozen(0)[2].weight)
    same({n: p for n, p in weights(whole.ema[0]).items()}, before)
    with pytest.raises(Stop):
        run(frozen(0), folder=tmp_path, on_step=stop_at(6), lr_scales=scales)
    resumed = run(frozen(9), folder=tmp_path, resume=True, lr_scales=scales)
    same(weights(resumed.net), weights(whole.net))


# --- a run that was stopped goes on ---


@pytest.mark.parametrize("stop", [4, 6, 11])
@pytest.mark.parametrize("scales", [None, {"0.": 0.1}])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, stop, scales):
    whole = run(folder=tmp_path / "whole", lr_scales=scales)
    with pytest.raises(Stop):
        run(folder=tmp_path / "cut", on_step=stop_at(stop), lr_scales=scales)
    torch.manual_seed(99)
    steps = []
    resumed = run(
        net_of(9),
        folder=tmp_path / "cut",
        resume=True,
        on_step=lambda done, loss: steps.append(done),
        lr_scales=scales,
    )
    same(weights(whole.net), weights(resumed.net))
    same(weights(whole.ema), weights(resumed.ema))
    assert losses(whole) == losses(resumed)
    assert steps == list(range(stop // 4 * 4 + 1, 13))


def test_a_finished_run_is_returned(tmp_path):
    first = run(folder=tmp_path)
    again = run(net_of(4), folder=tmp_path, resume=True)
    same(weights(first.net), weights(again.net))
    assert first.history == again.history


@pytest.mark.parametrize(
    ("conf", "settings", "name"), [({"lr": 0.01}, {}, "lr"), ({}, {"images": 7}, "images")]
)
def test_a_run_goes_on_with_its_own_settings_only(tmp_path, conf, settings, name):
    run(folder=tmp_path, settings={"images": 8})
    with pytest.raises(ValueError, match=rf"another configuration .{name}: .*there.*here"):
        run(conf=config(**conf), settings={"images": 8} | settings, folder=tmp_path, resume=True)


def test_a_folder_with_a_checkpoint_is_not_overwritten(tmp_path):
    run(folder=tmp_path)
    with pytest.raises(FileExistsError, match="resume"):
        run(folder=tmp_path)
    with pytest.raises(ValueError, match="resume=True needs the folder"):
        run(resume=True)


# --- what stops it ---


def test_a_nan_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    net = net_of()
    loss_of_step = loss_with(net)
    with pytest.raises(NanLoss, match=r"became nan at step 6;.*still holds step 4"):
        fit(net, lambda k: loss_of_step(k) * (math.nan if k == 6 else 1), config(), folder=tmp_path)
    resumed = run(net_of(8), folder=tmp_path, resume=True)
    same(weights(resumed.net), weights(run().net))


def test_numbers_are_read_when_the_log_is_due_and_the_step_is_still_named():
    net, seen = net_of(), []
    loss_of_step = loss_with(net)
    with pytest.raises(NanLoss, match="became nan at step 6"):
        fit(
            net,
            lambda k: loss_of_step(k) * (math.nan if k == 6 else 1),
            config(log_every=9),
            on_step=lambda done, loss: seen.append((done, loss)),
        )
    assert seen == [(done, None) for done in range(1, 9)]


def test_ctrl_c_ends_the_step_and_keeps_it(tmp_path):
    steps = []

    def on_step(done, loss):
        steps.append(done)
        if done == 6:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path, on_step=on_step)
    assert steps[-1] == 7
    assert steps_done(tmp_path / CHECKPOINT) == 7, "checkpoints are due at 4 and 8"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    same(weights(run(net_of(8), folder=tmp_path, resume=True).net), weights(run().net))


def test_bf16_ends_with_the_training():
    net, dtypes = net_of(), []
    net[0].register_forward_hook(lambda module, arguments, output: dtypes.append(output.dtype))
    half = run(net, config(precision="bf16"))
    assert set(dtypes) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in half.net.parameters())
    half.net(torch.zeros(1, 3))
    assert dtypes[-1] == torch.float32
    assert losses(half) == pytest.approx(losses(run()), rel=0.1, abs=0.02)


def test_a_factor_for_no_parameter_is_an_error():
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="begins with b"):
        fit(net, lambda k: net["a"](torch.ones(1, 1)).sum(), TrainConfig(), lr_scales={"b": 0.5})
