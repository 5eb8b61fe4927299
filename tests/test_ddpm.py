"""DDPM's formulas, against brute force, against exact answers, and against each other."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from diffusion_core.ddpm import (
    ddpm_sample,
    ddpm_step,
    eps_loss,
    q_posterior,
    q_sample,
    simple_loss,
)
from diffusion_core.exact import GaussianMixture
from diffusion_core.prediction import predict_x0
from diffusion_core.sampling import draw, last
from diffusion_core.schedules import timesteps
from tests.conftest import normal, seeded

F64 = torch.float64
PAIRS = [(1, 0), (2, 1), (2, 0), (500, 499), (500, 100), (1000, 999), (1000, 0)]


# --- forward ---


def test_the_jump_is_the_chain(schedule):
    """DDPM eq. 2 applied t times has the moments of eq. 4: its mean factor and its variance, pushed
    exactly."""
    factor, variance = 1.0, 0.0
    x_0, eps = normal(4, 3), normal(4, 3, seed=1)
    for t in range(1, schedule.T + 1):
        beta = schedule.betas[t - 1].item()
        factor, variance = math.sqrt(1 - beta) * factor, (1 - beta) * variance + beta
        if t in (1, 2, 100, 1000):
            expected = factor * x_0 + math.sqrt(variance) * eps
            assert_close(q_sample(x_0, t, eps, schedule), expected, rtol=0, atol=1e-12)


def test_each_image_has_its_own_time(linear):
    x_0, eps, t = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1), torch.tensor([0, 10, 1000])
    x_t = q_sample(x_0, t, eps, linear)
    for i in range(3):
        assert_close(
            x_t[i], q_sample(x_0[i : i + 1], t[i], eps[i : i + 1], linear)[0], rtol=0, atol=0
        )
    assert_close(x_t[0], x_0[0], rtol=0, atol=0)


def test_dtype_and_device_of_the_state_are_kept(linear):
    x = torch.zeros(2, 3, dtype=torch.bfloat16)
    t = torch.tensor([5, 6])
    assert q_sample(x, t, x, linear).dtype == torch.bfloat16
    assert ddpm_step(x, x, t, t - 1, x, linear).dtype == torch.bfloat16


def test_a_result_has_the_dtype_of_the_state_whatever_comes_beside_it(linear):
    """A network under autocast answers in bfloat16, an exact model in float64: the state stays
    what it is."""
    t = torch.tensor([5, 6])
    for mine in (torch.bfloat16, torch.float32, torch.float64):
        for theirs in (torch.bfloat16, torch.float32, torch.float64):
            x, other = normal(2, 3).to(mine), normal(2, 3, seed=1).to(theirs)
            for result in (
                q_sample(x, t, other, linear),
                q_posterior(other, x, t, t - 1, linear)[0],
                ddpm_step(other, x, t, t - 1, other, linear),
            ):
                assert result.dtype == mine


def test_rates_have_the_precision_of_the_state(linear):
    """x_0 in bfloat16 beside a float64 x_t: nothing is rounded that was not rounded before."""
    x_0, x_t, t = normal(2, 3).bfloat16(), normal(2, 3, seed=1), torch.tensor([500, 20])
    mean, var = q_posterior(x_0, x_t, t, t - 1, linear)
    wide_mean, wide_var = q_posterior(x_0.double(), x_t, t, t - 1, linear)
    assert mean.dtype == var.dtype == F64
    assert_close(mean, wide_mean, rtol=0, atol=0)
    assert_close(var, wide_var, rtol=0, atol=0)


# --- posterior ---


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_posterior_is_bayes_rule_by_brute_force(schedule, t, s):
    """q(x_s | x_t, x_0) on a grid of x_s: prior N(x_s | x_0) times likelihood N(x_t | x_s),
    normalized."""
    if s == 0:
        mean, var = q_posterior(normal(2, 3), normal(2, 3, seed=1), t, s, schedule)
        assert_close(mean, normal(2, 3), rtol=0, atol=1e-12)
        assert var == 0
        return
    x_0, x_t = torch.tensor([[0.7]], dtype=F64), torch.tensor([[-0.4]], dtype=F64)
    mean, var = q_posterior(x_0, x_t, t, s, schedule)
    a_s, a_t = schedule.alpha_bar_at(s), schedule.alpha_bar_at(t)
    ratio = a_t / a_s
    grid = mean + var.sqrt() * torch.linspace(-12, 12, 4001, dtype=F64)
    log_p = -0.5 * (grid - a_s.sqrt() * x_0) ** 2 / (1 - a_s)
    log_p = log_p - 0.5 * (x_t - ratio.sqrt() * grid) ** 2 / (1 - ratio)
    weight = log_p.softmax(1)
    brute_mean = (weight * grid).sum()
    brute_var = (weight * (grid - brute_mean) ** 2).sum()
    assert mean.item() == pytest.approx(brute_mean.item(), abs=1e-9)
    assert var.item() == pytest.approx(brute_var.item(), rel=1e-6)


def test_posterior_with_s_before_t_by_one_is_eq_7(linear):
    t = torch.tensor([2, 500, 1000])
    x_0, x_t = normal(3, 4), normal(3, 4, seed=1)
    mean, var = q_posterior(x_0, x_t, t, t - 1, linear)
    beta, a, a_prev = linear.betas[t - 1], linear.alpha_bar[t], linear.alpha_bar[t - 1]
    w0, wt = a_prev.sqrt() * beta / (1 - a), (1 - beta).sqrt() * (1 - a_prev) / (1 - a)
    assert_close(mean, w0[:, None] * x_0 + wt[:, None] * x_t, rtol=0, atol=1e-13)
    assert_close(var.flatten(), (1 - a_prev) / (1 - a) * beta, rtol=0, atol=1e-15)
    assert var.shape == (3, 1)


def test_the_posterior_mean_through_x0_and_through_eps_agree(schedule):
    """DDPM eq. 7 with the x_0 of eq. 15 is eq. 11."""
    for t, s in PAIRS:
        eps, x_t = normal(2, 5), normal(2, 5, seed=1)
        mean, _ = q_posterior(predict_x0(eps, x_t, t, schedule), x_t, t, s, schedule)
        amplification = 1 / schedule.alpha_bar_at(t).sqrt().item()
        step = ddpm_step(eps, x_t, t, s, torch.zeros_like(x_t), schedule)
        assert_close(step, mean, rtol=0, atol=1e-12 * (1 + amplification))


# --- reverse ---


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_step_variances(schedule, t, s):
    zero, one = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    a_t, a_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(s)
    beta = 1 - a_t / a_s
    wanted = {"beta": beta, "posterior": (1 - a_s) / (1 - a_t) * beta}
    for name, variance in wanted.items():
        step = ddpm_step(zero, zero, t, s, one, schedule, name)
        expected = variance.sqrt().item() if s > 0 else 0.0
        assert step.item() == pytest.approx(expected, rel=1e-10)
    default = ddpm_step(zero, zero, t, s, one, schedule)
    assert default.item() == pytest.approx(wanted["posterior"].sqrt().item() * (s > 0), rel=1e-10)


def test_step_times_may_differ_over_the_batch(linear):
    x, eps, noise = normal(3, 2), normal(3, 2, seed=1), normal(3, 2, seed=2)
    t, s = torch.tensor([1, 400, 1000]), torch.tensor([0, 10, 999])
    together = ddpm_step(eps, x, t, s, noise, linear)
    for i in range(3):
        i_ = slice(i, i + 1)
        assert_close(
            together[i_], ddpm_step(eps[i_], x[i_], t[i], s[i], noise[i_], linear), rtol=0, atol=0
        )


def test_one_step_is_diffusers(linear):
    diffusers = pytest.importorskip("diffusers")
    for ours, theirs in (("posterior", "fixed_small"), ("beta", "fixed_large")):
        scheduler = diffusers.DDPMScheduler(variance_type=theirs, clip_sample=False)
        x, eps = normal(2, 3, 4, 4).float(), normal(2, 3, 4, 4, seed=1).float()
        for t in (2, 3, 500, 1000):
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(t))
            generator = torch.Generator().manual_seed(t)
            their_step = scheduler.step(eps, t - 1, x, generator=generator)
            step = ddpm_step(eps, x, t, t - 1, noise, linear, ours)
            assert_close(step, their_step.prev_sample, rtol=0, atol=5e-4)  # their table is float32
            assert_close(
                predict_x0(eps, x, t, linear),
                their_step.pred_original_sample,
                rtol=0,
                atol=2e-5 * math.sqrt(1 / linear.alpha_bar[t]),
            )


@pytest.mark.parametrize("S", [1, 2, 10, 100])
def test_a_single_point_is_sampled_exactly(schedule, S):
    """With the posterior variance every grid gives the exact marginals of single-point data:
    moments pushed analytically."""
    point = 0.6
    times = timesteps(schedule.T, S)
    a = schedule.alpha_bar_at(times[0])
    mean, variance = a.sqrt() * point, 1 - a
    data = GaussianMixture(torch.ones(1), torch.tensor([[point]], dtype=F64), torch.zeros(1))
    eps = data.eps_model(schedule)
    for t, s in itertools.pairwise(times):
        mean, variance = _push(eps, mean, variance, t, s, schedule, "posterior")
        a_s = schedule.alpha_bar_at(s)
        assert mean.item() == pytest.approx((a_s.sqrt() * point).item(), abs=1e-9)
        assert variance.item() == pytest.approx((1 - a_s).item(), abs=1e-9)


@pytest.mark.parametrize("S", [10, 100])
def test_standard_normal_data_is_sampled_exactly_with_variance_beta(schedule, S):
    """On N(0, I) data the variance beta keeps every marginal N(0, 1) until the last step, which
    adds no noise."""
    data = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1))
    eps, times = data.eps_model(schedule), timesteps(schedule.T, S)
    mean, variance = torch.tensor(0.0, dtype=F64), torch.tensor(1.0, dtype=F64)
    for t, s in itertools.pairwise(times[:-1]):
        mean, variance = _push(eps, mean, variance, t, s, schedule, "beta")
        assert mean.item() == pytest.approx(0, abs=1e-12)
        assert variance.item() == pytest.approx(1, abs=1e-10)


def _push(eps_model, mean, variance, t, s, schedule, kind):
    """Mean and variance after one step whose model is affine in x: read off from three
    evaluations."""
    x = torch.tensor([[0.0], [1.0]], dtype=F64)
    out = ddpm_step(eps_model(x, t), x, t, s, torch.zeros_like(x), schedule, kind)
    offset, slope = out[0, 0], out[1, 0] - out[0, 0]
    sigma = (
        ddpm_step(eps_model(x, t), x, t, s, torch.ones_like(x), schedule, kind)[0, 0] - out[0, 0]
    )
    return offset + slope * mean, slope**2 * variance + sigma**2


# --- the sampler ---


def test_the_sampler_is_the_step_in_a_loop(linear, mixture):
    x_T, times = normal(5, 2), torch.tensor([1000, 700, 30, 2, 1, 0])
    eps_model, theirs = mixture.eps_model(linear), seeded(3)
    steps = list(ddpm_sample(eps_model, x_T, times, linear, generator=theirs))
    assert [s.t.item() for s in steps] == times[1:].tolist()
    generator, x = seeded(3), x_T
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        eps = eps_model(x, t)
        assert_close(steps[i].x_0, predict_x0(eps, x, t, linear), rtol=0, atol=1e-12)
        noise = draw(x, generator) if s > 0 else torch.zeros_like(x)
        x = ddpm_step(eps, x, t, s, noise, linear)
        assert_close(steps[i].x, x, rtol=0, atol=0)
    assert torch.equal(generator.get_state(), theirs.get_state())  # nothing is drawn for s = 0
    assert_close(last(iter(steps)), x, rtol=0, atol=0)


def test_variance_reaches_the_loop(linear, mixture):
    x_T, times, model = normal(2, 2), timesteps(1000, 3), mixture.eps_model(linear)
    final = {
        v: last(ddpm_sample(model, x_T, times, linear, variance=v, generator=seeded(0)))
        for v in ("posterior", "beta")
    }
    assert not torch.equal(final["posterior"], final["beta"])
    default = last(ddpm_sample(model, x_T, times, linear, generator=seeded(0)))
    assert_close(default, final["posterior"], rtol=0, atol=0)


def test_samples_of_the_exact_model_are_the_data(linear, mixture):
    """Mean and covariance of 4,000 samples, within 4 standard errors; the bias of 100 strided steps
    is below them."""
    n = 4000
    x = last(
        ddpm_sample(
            mixture.eps_model(linear),
            normal(n, 2),
            timesteps(1000, 250),
            linear,
            generator=seeded(1),
        )
    )
    w, m = mixture.weights[:, None], mixture.means
    mean = (w * m).sum(0)
    second = (w * (m**2 + mixture.stds[:, None] ** 2)).sum(0)
    std = (second - mean**2).sqrt()
    assert ((x.mean(0) - mean).abs() < 4 * std / math.sqrt(n)).all()
    assert ((x.std(0) / std - 1).abs() < 0.05).all()


def test_an_unknown_variance_fails_at_the_call(linear):
    times = timesteps(1000, 5)
    with pytest.raises(ValueError, match="variance = 'other' is unknown"):
        ddpm_sample(lambda x, t: x, normal(2, 2), times, linear, variance="other")


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y, sch: q_sample(x, 5, y, sch),
        lambda x, y, sch: q_posterior(x, y, 5, 4, sch),
        lambda x, y, sch: ddpm_step(x, y, 5, 4, y, sch),
        lambda x, y, sch: ddpm_step(x, x, 5, 4, y, sch),
        lambda x, y, sch: eps_loss(lambda a, t: a, x, torch.tensor([5, 5]), y, sch),
        lambda x, y, sch: eps_loss(lambda a, t: y, x, torch.tensor([5, 5]), x, sch),
    ],
)
def test_shapes_must_agree(linear, call):
    with pytest.raises(ValueError, match=r"\(2, 3\).*must have the same shape"):
        call(normal(2, 3), normal(2, 4), linear)


@pytest.mark.parametrize(("t", "s"), [(5, 5), (5, 6), (1001, 0), (5, -1), (0, 0)])
def test_steps_go_to_an_earlier_time(linear, t, s):
    x = normal(2, 3)
    with pytest.raises(ValueError, match=r"[ts] = "):
        ddpm_step(x, x, t, s, x, linear)
    with pytest.raises(ValueError, match=r"[ts] = "):
        q_posterior(x, x, t, s, linear)


def test_times_must_fit_each_other(linear):
    x = normal(2, 3)
    with pytest.raises(ValueError, match="do not broadcast"):
        ddpm_step(x, x, torch.tensor([5, 6]), torch.tensor([1, 2, 3]), x, linear)
    with pytest.raises(ValueError, match=r"s = 5 is not before t = 5"):
        ddpm_step(x, x, torch.tensor([6, 5]), torch.tensor(5), x, linear)


@pytest.mark.parametrize(
    ("t", "s", "message"),
    [
        (-1, -2, "t = -1 is outside"),
        (5, -0.5, r"s = -0\.5 is outside"),
        (1001, 0, "t = 1001 is out"),
    ],
)
def test_a_time_outside_its_domain_is_named(linear, t, s, message):
    x = normal(2, 3)
    with pytest.raises(ValueError, match=message):
        ddpm_step(x, x, t, s, x, linear)


def test_real_times_down_to_0_are_times(linear):
    x = normal(2, 3)
    mean, _ = q_posterior(x, x, 0.5, 0.25, linear)
    assert mean.isfinite().all()


def test_the_loss_needs_a_positive_time(linear):
    x = normal(2, 3)
    with pytest.raises(ValueError, match="t = 0"):
        eps_loss(lambda a, t: a, x, torch.tensor([0, 5]), x, linear)


def test_an_unknown_variance_is_refused(linear):
    x = normal(2, 3)
    with pytest.raises(ValueError, match="variance = 'other' is unknown"):
        ddpm_step(x, x, 5, 4, x, linear, "other")


# --- losses ---


def test_loss_of_a_known_error(linear):
    x_0, eps, t = normal(3, 2, 4), normal(3, 2, 4, seed=1), torch.tensor([1, 50, 1000])
    asked = {}

    def model(x, time):
        asked["x"], asked["t"] = x, time
        return eps + torch.tensor([0.0, 1.0, 2.0], dtype=F64)[:, None, None]

    losses = eps_loss(model, x_0, t, eps, linear)
    assert_close(losses, torch.tensor([0, 1, 4], dtype=F64), rtol=0, atol=1e-12)
    assert_close(asked["x"], q_sample(x_0, t, eps, linear), rtol=0, atol=0)
    assert asked["t"].tolist() == [1, 50, 1000]
    eps_loss(model, x_0, torch.tensor(7), eps, linear)
    assert asked["t"].tolist() == [7, 7, 7]


def test_simple_loss_draws_every_step_evenly(linear):
    seen = []

    def model(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    generator = seeded(0)
    loss = simple_loss(model, torch.zeros(20_000, 1), linear, generator=generator)
    t = seen[0]
    assert loss.shape == ()
    assert loss.item() == pytest.approx(1, abs=0.05)
    assert t.min() == 1
    assert t.max() == 1000
    assert t.double().mean().item() == pytest.approx(500.5, abs=4 * 289 / math.sqrt(20_000))
    again = simple_loss(model, torch.zeros(20_000, 1), linear, generator=seeded(0))
    assert again == loss
    assert simple_loss(model, torch.zeros(5, 3), linear).isfinite()


@pytest.mark.parametrize("B", [1, 3])
def test_an_image_with_a_generator_of_its_own_draws_its_own_time_and_noise(linear, B):
    """So that its loss does not depend on the batch it is in."""
    seen = []

    def model(x, t):
        seen.append((x[0], int(t[0])))
        return torch.zeros_like(x)

    loss = simple_loss(model, torch.zeros(B, 3), linear, generator=[seeded(i) for i in range(B)])
    first = seeded(0)
    t = torch.randint(1, 1001, (1,), generator=first)
    eps = torch.randn(3, generator=first)
    assert seen[0][1] == t.item()
    assert_close(seen[0][0], q_sample(torch.zeros(1, 3), t, eps[None], linear)[0], rtol=0, atol=0)
    if B == 1:
        assert loss == eps_loss(model, torch.zeros(1, 3), t, eps[None], linear).mean()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_simple_loss_wants_one_generator_or_one_for_each_image(linear, count):
    with pytest.raises(ValueError, match=f"{count} generators for a batch of 2"):
        simple_loss(lambda x, t: x, torch.zeros(2, 3), linear, generator=[seeded(0)] * count)
