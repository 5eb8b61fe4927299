"""What stops a run before its end."""

import copy
import math
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from diffusion_core.training import CHECKPOINT, EMA, NanLoss, steps_done
from tests.training.small import Stop, config, losses, run, same, stop_at, tiny, weights


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
    with pytest.raises(
        NanLoss, match=rf"gradient became (nan|inf) at step {bad};.*holds step {kept}"
    ):
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
    net, fresh, x, t = tiny(), tiny(), torch.ones(2, 1, 4, 4), torch.tensor([1, 2])
    with pytest.raises(Stop):
        run(net, config(precision="bf16"), on_step=stop_at(5))
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(net(x, t), fresh(x, t))
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("what", ["loss", "gradient", "weight"])
def test_numbers_are_read_when_the_log_is_due_and_the_step_is_still_named(tmp_path, what):
    """At step 6 of 12; the log is due after step 9, checkpoints after 5 and 10."""
    net, steps = tiny(), []

    def spoil(done, loss):
        steps.append(done)
        if done == 6 and what == "weight":
            with torch.no_grad():
                net.label.weight[0, 0] = math.inf
        if done == 6 and what == "loss":
            net.out.register_forward_hook(lambda module, arguments, output: output * math.nan)
        if done == 6 and what == "gradient":
            net.out.weight.register_hook(lambda gradient: gradient * math.inf)

    names = {
        "loss": "the loss became nan at step 6",
        "gradient": "gradient became (nan|inf) at step 6",
    }
    said = names.get(what, r"(loss|gradient|weight) became .* (at|by) step [6-9]")
    with pytest.raises(NanLoss, match=said) as error:
        run(net, config(log_every=9, checkpoint_every=5), folder=tmp_path, on_step=spoil)
    assert steps == list(range(1, 9))
    assert f"{CHECKPOINT} still holds step 5, all of it finite. Try a new run" in str(error.value)


def test_a_checkpoint_is_not_written_of_weights_that_are_not_finite(tmp_path):
    """The last update spoils them: every loss and gradient before was fine."""
    net = tiny()

    def spoil(done, loss):
        if done == 7:
            with torch.no_grad():
                net.mix.bias[0] = 3.4e38  # tanh makes it 1, and Adam's step leaves it there

    run(net, config(steps=8), folder=tmp_path / "large", on_step=spoil)
    spoiled = copy.deepcopy(EMA.update)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            EMA, "update", lambda ema, net, k: (spoiled(ema, net, k), _infinite(net, k == 3))
        )
        with pytest.raises(NanLoss, match="a weight became infinite or nan by step 4"):
            run(tiny(), config(log_every=12), folder=tmp_path / "infinite")
    assert list((tmp_path / "infinite").iterdir()) == []


def _infinite(net, now):
    if now:
        with torch.no_grad():
            net.out.bias[0] = -math.inf


def test_the_way_out_of_nan_that_the_message_names_works(tmp_path):
    with pytest.raises(NanLoss, match=r"Try a new run, in another folder, with a lower lr"):
        run(conf=config(lr=1e38, grad_clip=1e38), folder=tmp_path / "a")
    run(conf=config(lr=0.01), folder=tmp_path / "b")


def test_losses_are_read_at_logged_steps_only():
    seen = []
    result = run(conf=config(log_every=5), on_step=lambda done, loss: seen.append(loss))
    assert [loss is None for loss in seen] == [done not in (5, 10, 12) for done in range(1, 13)]
    assert [round(loss, 6) for loss in seen if loss is not None] == losses(result)


# --- Ctrl-C ---


def press_at(step):
    def on_step(done, loss):
        if done == step:
            signal.raise_signal(signal.SIGINT)

    return on_step


def test_ctrl_c_ends_the_step_and_keeps_it(tmp_path):
    steps = []

    def on_step(done, loss):
        steps.append(done)
        press_at(6)(done, loss)

    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path, on_step=on_step)
    assert steps[-1] == 7
    assert steps_done(tmp_path / CHECKPOINT) == 7, "checkpoints are due at 4 and 8"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    same(weights(run(tiny(seed=8), folder=tmp_path, resume=True).net), weights(run().net))


def test_ctrl_c_twice_stops_at_once():
    def on_step(done, loss):
        press_at(6)(done, loss)
        press_at(6)(done, loss)

    net = tiny()
    with pytest.raises(KeyboardInterrupt):
        run(net, on_step=on_step)
    other = tiny()
    with pytest.raises(Stop):
        run(other, on_step=stop_at(6))
    same(weights(net), weights(other))


def test_ctrl_c_without_a_folder_is_ctrl_c():
    with pytest.raises(KeyboardInterrupt):
        run(on_step=press_at(3))


@pytest.mark.parametrize("handler", [signal.SIG_IGN, print])
def test_another_handler_of_ctrl_c_is_left_alone(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        result = run(on_step=press_at(3))
        assert len(result.history) == 12
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_in_another_thread_has_no_handler():
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(run).result().history) == 12
