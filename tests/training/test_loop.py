"""Training: one function of the step number, checked against a loop written by hand."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from diffusion_core.data import Images
from diffusion_core.networks import UNet
from diffusion_core.schedules import linear_betas
from diffusion_core.training import RunState, train, validation_loss
from diffusion_core.training import loop as training
from tests.training.small import SCHEDULE, T, Tiny, config, images, losses, run, same, tiny, weights


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
        assert_close(value.double(), theta[name], rtol=0, atol=1e-4)
    for name, value in result.ema.named_parameters():
        assert_close(value.double(), shadow[name], rtol=0, atol=1e-4)
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


def test_a_row_of_the_log():
    conf = config(batch_size=8, log_every=2, validate_every=4)
    state = RunState(tiny(1), tiny(), None)
    for step, loss, seconds in ((2, 0.12345678, 3.14159), (3, None, 1.0), (4, 0.5, 1.0)):
        state.step = step
        training._log(state, loss, seconds, images(4), SCHEDULE, conf)
    second, fourth = state.history
    assert second == {"step": 2, "loss": 0.123457, "images_per_s": 5.1, "seconds": 3.14}
    assert fourth["step"] == 4
    exact = validation_loss(tiny(), images(4), SCHEDULE)  # of the average, not of the net
    assert fourth["loss_by_t"] == [round(v, 6) for v in exact]


def test_the_log_has_the_steps_asked_for():
    result = run(conf=config(steps=10, log_every=4))
    assert [row["step"] for row in result.history] == [4, 8, 10]
    json.dumps(result.history)


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


def test_on_step_sees_every_step_and_its_loss():
    seen = []
    result = run(on_step=lambda done, loss: seen.append((done, round(loss, 6))))
    assert seen == [(row["step"], row["loss"]) for row in result.history]


class Wrapped(nn.Module):
    """As DistributedDataParallel does: it calls the net, and shows none of its attributes."""

    def __init__(self, net):
        super().__init__()
        self.inside, self.labels = [net], []

    def forward(self, x, t, y=None):
        self.labels.append(y)
        return self.inside[0](x, t, y)


def test_the_wrapped_net_is_the_one_that_is_called_and_the_net_says_what_its_labels_are(
    monkeypatch,
):
    """On several processes only the wrapped net averages gradients, and only the net inside knows its classes."""
    made = []

    def wrapped(net, place):
        made.append(Wrapped(net))
        return made[0]

    monkeypatch.setattr(training, "together", wrapped)
    plain = run(tiny())
    assert len(made[0].labels) == 12
    assert all(y is not None for y in made[0].labels)
    monkeypatch.undo()
    same(plain.net.state_dict(), run(tiny()).net.state_dict())


# --- data that cannot be trained on ---


@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.arange(32) % 3 + 1, r"the labels of {}: 3 is out of range, expected 0\.\.2"),
        (torch.arange(32) % 3 - 1, r"the labels of {}: -1 is out of range"),
        (torch.arange(31) % 3, r"the labels of {} have shape \(31,\)"),
        ((torch.arange(32) % 3).float(), r"the labels of {} have .* dtype torch.float32"),
    ],
)
def test_labels_are_checked_before_the_first_step(labels, said, validation):
    """Label 3 of 3 classes would train the null label."""
    wrong = Images(images().pixels, labels)
    data, more = (images(), {"validation": wrong}) if validation else (wrong, {})
    with pytest.raises(ValueError, match=said.format("validation" if validation else "data")):
        train(tiny(), data, SCHEDULE, config(), device="cpu", **more)


def test_a_net_without_classes_may_have_any_labels():
    data = Images(images().pixels, torch.arange(32) - 7)
    train(tiny(classes=None), data, SCHEDULE, config(steps=1), device="cpu")


def test_no_images_are_no_data():
    none = Images(images().pixels[:0], images().labels[:0])
    with pytest.raises(ValueError, match="data holds no images"):
        train(tiny(), none, SCHEDULE, config(), device="cpu")
    with pytest.raises(ValueError, match="validation holds no images"):
        run(validation=none)
