"""DDPM's formulas, against brute force, against exact answers, and against each other."""

import itertools
import math

import pytest
import torch

from diffusion_core.ddpm import (
    ddpm_sample,
    ddpm_step,
    eps_loss,
    q_posterior,
    q_sample,
    simple_loss,
)
from diffusion_core.exact import GaussianMixture
from diffusion_core.likelihood import (
    bits_per_dim,
    decoder_nll,
    gaussian_kl,
    prior_kl,
    vlb_term,
    vlb_terms,
)
from diffusion_core.prediction import clip_x0, eps_from_v, predict_eps, predict_v, predict_x0
from diffusion_core.sampling import Step, draw, last
from diffusion_core.schedules import NoiseSchedule, cosine_betas, timesteps
from tests.conftest import close, normal

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
            close(q_sample(x_0, t, eps, schedule), expected, 1e-12)


def test_each_image_has_its_own_time(linear):
    x_0, eps, t = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1), torch.tensor([0, 10, 1000])
    x_t = q_sample(x_0, t, eps, linear)
    for i in range(3):
        close(x_t[i], q_sample(x_0[i : i + 1], t[i], eps[i : i + 1], linear)[0], 0)
    close(x_t[0], x_0[0], 0)


def test_dtype_and_device_of_the_state_are_kept(linear):
    x = torch.zeros(2, 3, dtype=torch.bfloat16)
    t = torch.tensor([5, 6])
    assert q_sample(x, t, x, linear).dtype == torch.bfloat16
    assert ddpm_step(x, x, t, t - 1, x, linear).dtype == torch.bfloat16
    assert predict_x0(x, x, t, linear).dtype == torch.bfloat16


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
                predict_x0(other, x, t, linear),
                predict_eps(other, x, t, linear),
                predict_v(x, other, t, linear),
                eps_from_v(other, x, t, linear),
                ddpm_step(other, x, t, t - 1, other, linear),
            ):
                assert result.dtype == mine


def test_rates_have_the_precision_of_the_state(linear):
    """x_0 in bfloat16 beside a float64 x_t: nothing is rounded that was not rounded before."""
    x_0, x_t, t = normal(2, 3).bfloat16(), normal(2, 3, seed=1), torch.tensor([500, 20])
    close(predict_eps(x_0, x_t, t, linear), predict_eps(x_0.double(), x_t, t, linear), 0)
    mean, var = q_posterior(x_0, x_t, t, t - 1, linear)
    wide_mean, wide_var = q_posterior(x_0.double(), x_t, t, t - 1, linear)
    assert mean.dtype == var.dtype == F64
    close(mean, wide_mean, 0)
    close(var, wide_var, 0)


# --- posterior ---


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_posterior_is_bayes_rule_by_brute_force(schedule, t, s):
    """q(x_s | x_t, x_0) on a grid of x_s: prior N(x_s | x_0) times likelihood N(x_t | x_s),
    normalized."""
    if s == 0:
        mean, var = q_posterior(normal(2, 3), normal(2, 3, seed=1), t, s, schedule)
        close(mean, normal(2, 3), 1e-12)
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
    close(mean, w0[:, None] * x_0 + wt[:, None] * x_t, 1e-13)
    close(var.flatten(), (1 - a_prev) / (1 - a) * beta, 1e-15)
    assert var.shape == (3, 1)


def test_the_posterior_mean_through_x0_and_through_eps_agree(schedule):
    """DDPM eq. 7 with the x_0 of eq. 15 is eq. 11."""
    for t, s in PAIRS:
        eps, x_t = normal(2, 5), normal(2, 5, seed=1)
        mean, _ = q_posterior(predict_x0(eps, x_t, t, schedule), x_t, t, s, schedule)
        amplification = 1 / schedule.alpha_bar_at(t).sqrt().item()
        step = ddpm_step(eps, x_t, t, s, torch.zeros_like(x_t), schedule)
        close(step, mean, 1e-12 * (1 + amplification))


# --- translations ---


def test_x0_eps_and_v_are_one_prediction(schedule):
    x_0, eps, t = normal(3, 4), normal(3, 4, seed=1), torch.tensor([1, 300, 1000])
    x_t = q_sample(x_0, t, eps, schedule)
    v = predict_v(x_0, eps, t, schedule)
    signal, noise = schedule.at(t, x_0)
    close(v, signal * eps - noise * x_0, 1e-14)
    close(eps_from_v(v, x_t, t, schedule), eps, 1e-12)
    close(predict_eps(x_0, x_t, t, schedule), eps, 1e-11)
    close(predict_x0(eps, x_t, t, schedule)[:2], x_0[:2], 1e-11)
    close(signal * x_t - noise * v, x_0, 1e-12)


def test_clip_x0_is_the_model_where_nothing_is_clipped(linear):
    x_t, eps = 0.1 * normal(2, 3), 0.01 * normal(2, 3, seed=1)
    t = torch.tensor([5, 5])
    close(clip_x0(lambda x, t: eps, linear)(x_t, t), eps, 1e-12)


def test_clip_x0_keeps_the_prediction_in_range(linear):
    x_t, t = 3 * normal(2, 3), torch.tensor([5, 900])
    clipped = clip_x0(lambda x, t: torch.zeros_like(x), linear, -0.5, 0.25)(x_t, t)
    x_0 = predict_x0(clipped, x_t, t, linear)
    raw = predict_x0(torch.zeros_like(x_t), x_t, t, linear)
    close(x_0, raw.clamp(-0.5, 0.25), 1e-11)
    default = predict_x0(clip_x0(lambda x, t: torch.zeros_like(x), linear)(x_t, t), x_t, t, linear)
    close(default, raw.clamp(-1, 1), 1e-11)
    with pytest.raises(ValueError, match=r"low = 1.0 must be below high = 1.0"):
        clip_x0(lambda x, t: x, linear, 1.0, 1.0)


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
        close(together[i_], ddpm_step(eps[i_], x[i_], t[i], s[i], noise[i_], linear), 0)


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
            close(step, their_step.prev_sample, 5e-4)  # their table is float32
            close(
                predict_x0(eps, x, t, linear),
                their_step.pred_original_sample,
                2e-5 * math.sqrt(1 / linear.alpha_bar[t]),
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
    eps_model, theirs = mixture.eps_model(linear), _seeded(3)
    steps = list(ddpm_sample(eps_model, x_T, times, linear, generator=theirs))
    assert [s.t.item() for s in steps] == times[1:].tolist()
    generator, x = _seeded(3), x_T
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        eps = eps_model(x, t)
        close(steps[i].x_0, predict_x0(eps, x, t, linear), 1e-12)
        noise = draw(x, generator) if s > 0 else torch.zeros_like(x)
        x = ddpm_step(eps, x, t, s, noise, linear)
        close(steps[i].x, x, 0)
    assert torch.equal(generator.get_state(), theirs.get_state())  # nothing is drawn for s = 0
    close(last(iter(steps)), x, 0)


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_the_model_sees_the_original_times(linear):
    seen = []

    def model(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    last(ddpm_sample(model, normal(3, 2), timesteps(1000, 4), linear))
    assert [t.tolist() for t in seen] == [[1000] * 3, [750] * 3, [500] * 3, [250] * 3]


def test_variance_reaches_the_loop(linear, mixture):
    x_T, times, model = normal(2, 2), timesteps(1000, 3), mixture.eps_model(linear)
    final = {
        v: last(ddpm_sample(model, x_T, times, linear, variance=v, generator=_seeded(0)))
        for v in ("posterior", "beta")
    }
    assert not torch.equal(final["posterior"], final["beta"])
    default = last(ddpm_sample(model, x_T, times, linear, generator=_seeded(0)))
    close(default, final["posterior"], 0)


def test_the_last_step_adds_no_noise(linear, mixture):
    x = normal(4, 2)
    times = torch.tensor([1, 0])
    model = mixture.eps_model(linear)
    runs = [last(ddpm_sample(model, x, times, linear, generator=_seeded(i))) for i in (0, 1)]
    close(runs[0], runs[1], 0)


def test_no_gradient_is_kept_and_the_callers_mode_is_left_alone(linear):
    weight = torch.ones((), dtype=F64, requires_grad=True)
    steps = ddpm_sample(lambda x, t: weight * x, normal(2, 2), timesteps(1000, 3), linear)
    assert not next(steps).x.requires_grad
    assert torch.is_grad_enabled()
    next(steps)
    assert torch.is_grad_enabled()


def test_an_images_noise_does_not_depend_on_its_batch(linear, mixture):
    times, model = timesteps(1000, 5), mixture.eps_model(linear)
    x_T = normal(3, 2)
    together = last(
        ddpm_sample(model, x_T, times, linear, generator=[_seeded(i) for i in range(3)])
    )
    for i in range(3):
        alone = last(ddpm_sample(model, x_T[i : i + 1], times, linear, generator=[_seeded(i)]))
        close(together[i : i + 1], alone, 0)


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
            generator=_seeded(1),
        )
    )
    w, m = mixture.weights[:, None], mixture.means
    mean = (w * m).sum(0)
    second = (w * (m**2 + mixture.stds[:, None] ** 2)).sum(0)
    std = (second - mean**2).sqrt()
    assert ((x.mean(0) - mean).abs() < 4 * std / math.sqrt(n)).all()
    assert ((x.std(0) / std - 1).abs() < 0.05).all()


@pytest.mark.parametrize(
    ("times", "error", "message"),
    [
        ([5, 0], TypeError, "got list"),
        (torch.tensor([5]), ValueError, "at least two"),
        (torch.tensor([[5, 0]]), ValueError, "one-dimensional"),
        (torch.tensor([5, 5, 0]), ValueError, r"times\[0\] = 5 is followed by 5"),
        (torch.tensor([5, 7, 0]), ValueError, r"times\[0\] = 5 is followed by 7"),
        (torch.tensor([5, 1]), ValueError, "ends at 1"),
        (torch.tensor([1001, 0]), ValueError, "times = 1001"),
        (torch.tensor([5, 0, -1]), ValueError, "times = -1"),
    ],
)
def test_bad_grids_fail_at_the_call(linear, times, error, message):
    with pytest.raises(error, match=message):
        ddpm_sample(lambda x, t: x, normal(2, 2), times, linear)


def test_other_bad_arguments_fail_at_the_call(linear):
    times = timesteps(1000, 5)
    with pytest.raises(ValueError, match="variance = 'other' is unknown"):
        ddpm_sample(lambda x, t: x, normal(2, 2), times, linear, variance="other")
    with pytest.raises(ValueError, match="3 generators for a batch of 2"):
        ddpm_sample(
            lambda x, t: x, normal(2, 2), times, linear, generator=[_seeded(i) for i in range(3)]
        )
    with pytest.raises(ValueError, match="made no step"):
        last(iter([]))


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y, sch: q_sample(x, 5, y, sch),
        lambda x, y, sch: q_posterior(x, y, 5, 4, sch),
        lambda x, y, sch: predict_x0(x, y, 5, sch),
        lambda x, y, sch: predict_eps(x, y, 5, sch),
        lambda x, y, sch: predict_v(x, y, 5, sch),
        lambda x, y, sch: eps_from_v(x, y, 5, sch),
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
    x, eps = normal(2, 3), normal(2, 3, seed=1)
    mean, _ = q_posterior(x, x, 0.5, 0.25, linear)
    assert mean.isfinite().all()
    close(predict_eps(x, q_sample(x, 0.5, eps, linear), 0.5, linear), eps, 1e-10)
    with pytest.raises(ValueError, match="t = -1 is outside"):
        predict_eps(x, x, -1, linear)


def test_eps_needs_a_positive_time(linear):
    x = normal(2, 3)
    with pytest.raises(ValueError, match="t = 0"):
        predict_eps(x, x, 0, linear)
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
    close(losses, torch.tensor([0, 1, 4], dtype=F64), 1e-12)
    close(asked["x"], q_sample(x_0, t, eps, linear), 0)
    assert asked["t"].tolist() == [1, 50, 1000]
    eps_loss(model, x_0, torch.tensor(7), eps, linear)
    assert asked["t"].tolist() == [7, 7, 7]


def test_simple_loss_draws_every_step_evenly(linear):
    seen = []

    def model(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    generator = _seeded(0)
    loss = simple_loss(model, torch.zeros(20_000, 1), linear, generator=generator)
    t = seen[0]
    assert loss.shape == ()
    assert loss.item() == pytest.approx(1, abs=0.05)
    assert t.min() == 1
    assert t.max() == 1000
    assert t.double().mean().item() == pytest.approx(500.5, abs=4 * 289 / math.sqrt(20_000))
    again = simple_loss(model, torch.zeros(20_000, 1), linear, generator=_seeded(0))
    assert again == loss
    assert simple_loss(model, torch.zeros(5, 3), linear).isfinite()


@pytest.mark.parametrize("B", [1, 3])
def test_an_image_with_a_generator_of_its_own_draws_its_own_time_and_noise(linear, B):
    """So that its loss does not depend on the batch it is in."""
    seen = []

    def model(x, t):
        seen.append((x[0], int(t[0])))
        return torch.zeros_like(x)

    loss = simple_loss(model, torch.zeros(B, 3), linear, generator=[_seeded(i) for i in range(B)])
    first = _seeded(0)
    t = torch.randint(1, 1001, (1,), generator=first)
    eps = torch.randn(3, generator=first)
    assert seen[0][1] == t.item()
    close(seen[0][0], q_sample(torch.zeros(1, 3), t, eps[None], linear)[0], 0)
    if B == 1:
        assert loss == eps_loss(model, torch.zeros(1, 3), t, eps[None], linear).mean()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_simple_loss_wants_one_generator_or_one_for_each_image(linear, count):
    with pytest.raises(ValueError, match=f"{count} generators for a batch of 2"):
        simple_loss(lambda x, t: x, torch.zeros(2, 3), linear, generator=[_seeded(0)] * count)


@pytest.mark.parametrize("t", [1, 5])
def test_an_unknown_decoder_is_refused_at_every_t(linear, t):
    x = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="decoder = 'nonsense' is unknown"):
        vlb_term(lambda x, t: x, x, t, x, linear, decoder="nonsense")


# --- the bound ---


def _tiny():
    return NoiseSchedule.from_betas(torch.linspace(0.05, 0.6, 6, dtype=F64))


def test_kl_by_integration():
    mean_q, var_q, mean_p, var_p = (torch.tensor(v, dtype=F64) for v in (0.3, 0.5, -0.2, 1.7))
    x = torch.linspace(-12, 12, 200_001, dtype=F64)
    log = [
        -0.5 * (x - m) ** 2 / v - 0.5 * (2 * math.pi * v).log()
        for m, v in ((mean_q, var_q), (mean_p, var_p))
    ]
    numeric = torch.trapezoid(log[0].exp() * (log[0] - log[1]), x)
    assert gaussian_kl(mean_q, var_q, mean_p, var_p).item() == pytest.approx(
        numeric.item(), abs=1e-9
    )


def test_the_bound_is_tight_for_one_point():
    """For single-point data and its exact model every KL is 0: only L_T and L_0 remain."""
    schedule = _tiny()
    data = GaussianMixture(torch.ones(1), torch.tensor([[0.4, -0.3]]), torch.zeros(1))
    x_0 = data.means.expand(3, 2)
    terms = vlb_terms(
        data.eps_model(schedule), x_0, schedule, decoder="gaussian", generator=_seeded(0)
    )
    assert terms.shape == (3, 7)
    assert terms.dtype == F64
    close(terms[:, 1:6], torch.zeros(3, 5, dtype=F64), 1e-12)
    a_T = schedule.alpha_bar[-1]
    prior = 0.5 * (a_T * (x_0**2) - a_T - (1 - a_T).log()).sum(1)
    close(terms[:, 6], prior, 1e-12)
    close(prior_kl(x_0, schedule), prior, 1e-12)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_terms_are_the_papers_kl(variance):
    """Against DDPM eq. 7, 8 and 11 written out by hand, for a model that is wrong by a constant."""
    schedule = _tiny()
    x_0, eps = normal(2, 3), normal(2, 3, seed=1)
    wrong = eps + 0.3
    for t in range(2, 7):
        beta, a, a_prev = schedule.betas[t - 1], schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
        tilde = (1 - a_prev) / (1 - a) * beta
        sigma2 = tilde if variance == "posterior" else beta
        gap = beta / ((1 - beta).sqrt() * (1 - a).sqrt()) * 0.3
        kl = 0.5 * (tilde / sigma2 - 1 - (tilde / sigma2).log() + gap**2 / sigma2)
        term = vlb_term(lambda x, t: wrong, x_0, t, eps, schedule, variance=variance)
        close(term, (3 * kl).expand(2), 1e-11)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_last_term_takes_beta_tilde_2(variance):
    schedule = _tiny()
    x_0, eps = 0.3 * normal(2, 3), normal(2, 3, seed=1)
    a1, a2, b2 = schedule.alpha_bar[1], schedule.alpha_bar[2], schedule.betas[1]
    sigma2 = (1 - a1) / (1 - a2) * b2 if variance == "posterior" else schedule.betas[0]
    wrong = eps + 0.3
    gap = (1 - a1).sqrt() / a1.sqrt() * 0.3
    nll = 3 * 0.5 * (gap**2 / sigma2 + (2 * math.pi * sigma2).log())
    term = vlb_term(
        lambda x, t: wrong, x_0, 1, eps, schedule, variance=variance, decoder="gaussian"
    )
    close(term, nll.expand(2), 1e-11)


def test_the_last_term_is_the_decoder_of_the_pixels():
    """L_0 of pixels, black and white among them, with the model's mean and the pixel's open bins."""
    schedule = _tiny()
    x_0 = torch.tensor([[-1.0, 1.0, 51 / 255 * 2 - 1]], dtype=F64)
    eps = normal(1, 3)
    wrong = eps + 0.3
    mean = x_0 - (1 / schedule.alpha_bar[1] - 1).sqrt() * 0.3
    sigma = schedule.betas[0].sqrt()
    edges = ((x_0 - 1 / 255 - mean) / sigma, (x_0 + 1 / 255 - mean) / sigma)
    below, above = (torch.special.ndtr(e) for e in edges)
    mass = above[0, 0] * (1 - below[0, 1]) * (above[0, 2] - below[0, 2])
    term = vlb_term(lambda x, t: wrong, x_0, 1, eps, schedule, variance="beta")
    close(term, -mass.log().reshape(1), 1e-9)


def test_the_discretized_decoder_is_a_distribution_over_pixels():
    """DDPM eq. 13: the 256 bins' probabilities sum to 1, for any mean and sigma."""
    pixels = (torch.arange(256, dtype=F64) / 127.5 - 1)[:, None]
    for mean, sigma in ((0.0, 0.3), (0.99, 0.01), (-1.3, 0.05), (0.2, 2.0)):
        m = torch.full_like(pixels, mean)
        nll = decoder_nll(pixels, m, torch.tensor(sigma, dtype=F64))
        assert nll.shape == (256,)
        assert (-nll).exp().sum().item() == pytest.approx(1, abs=1e-9)
        inner = 128
        width = 2 / 255
        density = math.exp(-0.5 * ((pixels[inner].item() - mean) / sigma) ** 2) / (
            sigma * math.sqrt(2 * math.pi)
        )
        if sigma >= 0.3:
            assert (-nll[inner]).exp().item() == pytest.approx(density * width, rel=1e-3)


def test_the_decoder_is_stable_far_from_the_mean():
    x = torch.tensor([[0.5], [-0.5]], dtype=F64)
    for mean in (-0.9, 0.9):
        m = torch.full_like(x, mean)
        nll = decoder_nll(x, m, torch.tensor(0.01, dtype=F64))
        assert torch.isfinite(nll).all()
    near, far = decoder_nll(x, torch.full_like(x, 0.9), torch.tensor(0.01, dtype=F64))
    assert far > near > 0
    mirrored = decoder_nll(-x, torch.full_like(x, -0.9), torch.tensor(0.01, dtype=F64))
    close(mirrored, torch.stack([near, far]), 1e-6)


def test_decoder_arguments(linear):
    x = 1.5 * torch.ones(1, 2, dtype=F64)
    with pytest.raises(ValueError, match="decoder = 'other' is unknown"):
        decoder_nll(x, x, x, "other")
    for outside in (x, -x):
        with pytest.raises(ValueError, match=r"max \|x_0\| = 1.5"):
            decoder_nll(outside, x, x)
    with pytest.raises(ValueError, match="variance = 'other' is unknown"):
        vlb_term(lambda a, t: a, x, 5, x, linear, variance="other")


def test_bits_per_dim():
    nats = torch.tensor([[12 * math.log(2)], [0.0]])
    close(bits_per_dim(nats, torch.zeros(2, 3, 2, 2)), torch.tensor([[1.0], [0.0]]), 1e-6)


def test_the_bound_bounds(mixture):
    """On a mixture with its exact model, the bound lies above -log p and closes in as the chain
    gets finer."""
    x_0 = mixture.sample(1000, _seeded(0))
    gaps = []
    for T in (50, 200):
        schedule = NoiseSchedule.from_betas(cosine_betas(T))
        terms = vlb_terms(
            mixture.eps_model(schedule),
            x_0,
            schedule,
            variance="beta",
            decoder="gaussian",
            generator=_seeded(1),
        )
        gaps.append((terms.sum(1) + mixture.log_prob(schedule)(x_0, 0)).mean().item())
    assert 0.3 < gaps[0] < 0.5
    assert 0.05 < gaps[1] < 0.2


def test_the_step_tuple():
    assert Step._fields == ("t", "x", "x_0")


# --- the noise ---


@pytest.mark.parametrize(
    ("dtype", "drawn_in"),
    [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.float32)],
)
@pytest.mark.parametrize("per_image", [False, True])
def test_noise_is_drawn_in_float32_or_in_float64_if_the_state_is(dtype, drawn_in, per_image):
    like = torch.zeros(1, 5, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    noise = draw(like, [generator] if per_image else generator)
    again = torch.Generator().manual_seed(3)
    assert torch.equal(noise, torch.randn(1, 5, generator=again, dtype=drawn_in).to(dtype))


@pytest.mark.parametrize("n", [0, 2, 4])
def test_noise_wants_a_generator_for_each_image(n):
    generators = [torch.Generator() for _ in range(n)]
    with pytest.raises(ValueError, match=f"{n} generators for a batch of 3"):
        draw(torch.zeros(3, 2), generators)


def test_noise_for_no_image_at_all():
    like = torch.empty(0, 2, dtype=torch.float64)
    noise = draw(like, [])
    assert noise.shape == like.shape
    assert noise.dtype == like.dtype
