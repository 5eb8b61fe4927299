"""DDIM's formulas, against DDPM, against exact answers, and against diffusers."""

import itertools
import math
import re

import pytest
import torch
from torch.testing import assert_close

from diffusion_core.ddim import (
    ddim_invert,
    ddim_invert_step,
    ddim_sample,
    ddim_sigma,
    ddim_sigma_hat,
    ddim_step,
)
from diffusion_core.ddpm import ddpm_sample, ddpm_step, q_posterior
from diffusion_core.exact import GaussianMixture
from diffusion_core.prediction import predict_x0
from diffusion_core.sampling import draw, last
from diffusion_core.schedules import NoiseSchedule, cosine_betas, linear_betas, timesteps
from tests.conftest import normal, seeded

F64 = torch.float64
PAIRS = [(1, 0), (2, 1), (2, 0), (500, 499), (500, 100), (1000, 999), (1000, 0)]
GRIDS = [
    torch.arange(1000, -1, -1),
    timesteps(1000, 10),
    timesteps(1000, 7, "quadratic"),
    timesteps(1000, 1),
]
ETAS = [0.0, 0.3, 1.0]


# --- sigma ---


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_sigma_squared_is_a_share_of_the_posteriors_variance(schedule, t, s):
    _, variance = q_posterior(normal(1, 1), normal(1, 1), t, s, schedule)
    for eta in (0.0, 0.3, 1.0):
        assert_close(ddim_sigma(t, s, schedule, eta), eta * variance.sqrt(), rtol=0, atol=1e-15)


def test_sigma_is_eq_16_by_hand(linear):
    """Steps of one, through the betas."""
    t = torch.tensor([2, 500, 1000])
    beta, a, before = linear.betas[t - 1], linear.alpha_bar[t], linear.alpha_bar[t - 1]
    by_hand = 0.7 * ((1 - before) / (1 - a)).sqrt() * beta.sqrt()
    assert_close(ddim_sigma(t, t - 1, linear, 0.7), by_hand, rtol=0, atol=1e-15)
    assert ddim_sigma(t, t - 1, linear, 0.7).dtype == F64
    assert_close(ddim_sigma_hat(t, t - 1, linear), beta.sqrt(), rtol=0, atol=1e-15)
    assert ddim_sigma_hat(t, t - 1, linear).dtype == F64
    assert ddim_sigma(1, 0, linear, 1.0) == 0
    assert_close(
        ddim_sigma_hat(1000, 0, linear), (1 - linear.alpha_bar[1000]).sqrt(), rtol=0, atol=1e-12
    )


# --- one step ---


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_eta_1_is_ddpm(schedule, t, s):
    """With the same draw, for any s < t: DDIM sec. 4.1 says so for s = t - 1."""
    x_t, eps, z = normal(3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)
    within = 1e-12 / schedule.alpha_bar_at(t).sqrt().item()
    assert_close(
        ddim_step(eps, x_t, t, s, z, schedule, 1.0),
        ddpm_step(eps, x_t, t, s, z, schedule),
        rtol=0,
        atol=within,
    )


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_hat_is_ddpm_with_the_larger_variance(schedule, t, s):
    x_t, eps, z = normal(3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)
    within = 1e-12 / schedule.alpha_bar_at(t).sqrt().item()
    hat = ddim_step(eps, x_t, t, s, z, schedule, "hat")
    assert_close(hat, ddpm_step(eps, x_t, t, s, z, schedule, "beta"), rtol=0, atol=within)


@pytest.mark.parametrize(("t", "s"), PAIRS[:-1])
def test_hat_changes_only_the_noise_term(linear, t, s):
    """DDIM app. D.3: the non-stochastic parts are those of eta = 1."""
    x_t, eps, z = normal(3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)
    zero = torch.zeros_like(z)
    mean = ddim_step(eps, x_t, t, s, zero, linear, 1.0)
    assert_close(ddim_step(eps, x_t, t, s, zero, linear, "hat"), mean, rtol=0, atol=0)
    added = ddim_step(eps, x_t, t, s, z, linear, "hat") - mean
    assert_close(added, (ddim_sigma_hat(t, s, linear) if s > 0 else 0) * z, rtol=0, atol=1e-12)


def test_the_full_chain_with_eta_1_is_the_full_chain_of_ddpm(mixture):
    """Step by step, with the same draws; so is "hat" with the variance beta."""
    linear = NoiseSchedule.from_betas(linear_betas(200, 5e-4, 0.1))
    times, model, x_T = torch.arange(200, -1, -1), mixture.eps_model(linear), normal(4, 2)
    for eta, variance in ((1.0, "posterior"), ("hat", "beta")):
        ours = ddim_sample(model, x_T, times, linear, eta=eta, generator=seeded(5))
        theirs = ddpm_sample(model, x_T, times, linear, variance=variance, generator=seeded(5))
        for a, b in zip(ours, theirs, strict=True):
            assert a.t == b.t
            assert_close(a.x, b.x, rtol=0, atol=1e-10)
            assert_close(a.x_0, b.x_0, rtol=0, atol=1e-10)


def test_a_step_is_eq_12_by_hand(linear):
    x_t, eps, z = normal(3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)
    a_t, a_s = linear.alpha_bar[700].item(), linear.alpha_bar[300].item()
    sigma = 0.4 * math.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))
    x_0 = (x_t - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
    by_hand = math.sqrt(a_s) * x_0 + math.sqrt(1 - a_s - sigma**2) * eps + sigma * z
    assert_close(ddim_step(eps, x_t, 700, 300, z, linear, 0.4), by_hand, rtol=0, atol=1e-12)
    assert_close(
        ddim_step(eps, x_t, 700, 300, None, linear),
        ddim_step(eps, x_t, 700, 300, z, linear),
        rtol=0,
        atol=0,
    )


def test_step_times_may_differ_over_the_batch(linear):
    x, eps, z = normal(3, 2), normal(3, 2, seed=1), normal(3, 2, seed=2)
    t, s = torch.tensor([1, 400, 1000]), torch.tensor([0, 10, 999])
    together = ddim_step(eps, x, t, s, z, linear, 0.5)
    up = ddim_invert_step(eps, x, s, t, linear)
    for i in range(3):
        j = slice(i, i + 1)
        assert_close(
            together[j], ddim_step(eps[j], x[j], t[i], s[i], z[j], linear, 0.5), rtol=0, atol=0
        )
        assert_close(up[j], ddim_invert_step(eps[j], x[j], s[i], t[i], linear), rtol=0, atol=0)


def test_a_result_has_the_dtype_of_the_state_whatever_comes_beside_it(linear):
    t = torch.tensor([5, 6])
    for mine in (torch.bfloat16, torch.float32, F64):
        for theirs in (torch.bfloat16, torch.float32, F64):
            x, other = normal(2, 3).to(mine), normal(2, 3, seed=1).to(theirs)
            for eta in (0.0, 0.5, "hat"):
                assert ddim_step(other, x, t, t - 1, other, linear, eta).dtype == mine
            assert ddim_step(other, x, t, t - 1, None, linear).dtype == mine
            assert ddim_invert_step(other, x, t - 1, t, linear).dtype == mine


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, "hat"])
def test_float32_is_finite_for_every_pair_of_times(schedule, eta):
    """In float32 the radicand would be negative for thousands of these."""
    t, s = torch.tril_indices(schedule.T, schedule.T)  # s <= t
    x = torch.ones(len(t), 1)
    assert bool(ddim_step(x, x, t + 1, s, x, schedule, eta).isfinite().all())


def test_one_step_is_diffusers(linear):
    """Whole grids, whose S divides T, with injected noise."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        beta_schedule="linear",
    )
    for S, eta in itertools.product((4, 10, 50), (0.0, 0.5, 1.0)):
        scheduler.set_timesteps(S)
        times = timesteps(1000, S)
        assert (scheduler.timesteps + 1).tolist() == times[:-1].tolist()
        for t, s in itertools.pairwise(times):
            x, eps = normal(2, 3, 4, 4).float(), normal(2, 3, 4, 4, seed=1).float()
            z = normal(2, 3, 4, 4, seed=2).float()
            theirs = scheduler.step(eps, int(t) - 1, x, eta=eta, variance_noise=z)
            within = 2e-5 / linear.alpha_bar[t].sqrt().item()  # their table is float32
            assert_close(
                ddim_step(eps, x, t, s, z, linear, eta), theirs.prev_sample, rtol=0, atol=within
            )


# --- marginals: moments pushed analytically ---


def _rates(model, t, s, schedule, eta):
    """(offset, slope, sigma) of steps t -> s (S,) whose model is affine in x: read off from three
    evaluations."""
    zero, one = torch.zeros(len(t), 1, dtype=F64), torch.ones(len(t), 1, dtype=F64)
    offset, moved, noisy = (
        ddim_step(model(x, t), x, t, s, z, schedule, eta)[:, 0]
        for x, z in ((zero, zero), (one, zero), (zero, one))
    )
    return offset, moved - offset, noisy - offset


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("grid", range(len(GRIDS)))
def test_every_eta_and_grid_carries_the_exact_marginals_of_a_point(schedule, grid, eta):
    point, times = 0.6, GRIDS[grid]
    data = GaussianMixture(torch.ones(1), torch.tensor([[point]], dtype=F64), torch.zeros(1))
    model = data.eps_model(schedule)
    a = schedule.alpha_bar_at(times)
    mean, variance = a[0].sqrt() * point, 1 - a[0]
    means, variances = [], []
    for offset, slope, sigma in zip(
        *_rates(model, times[:-1], times[1:], schedule, eta), strict=True
    ):
        mean, variance = offset + slope * mean, slope**2 * variance + sigma**2
        means.append(mean)
        variances.append(variance)
    assert_close(torch.stack(means), a[1:].sqrt() * point, rtol=0, atol=1e-9)
    assert_close(torch.stack(variances), 1 - a[1:], rtol=0, atol=1e-9)


def test_with_hat_a_point_gets_more_than_its_noise(linear):
    data = GaussianMixture(torch.ones(1), torch.tensor([[0.6]], dtype=F64), torch.zeros(1))
    t, s = torch.tensor([1000]), torch.tensor([900])
    a_t, a_s = linear.alpha_bar_at(t), linear.alpha_bar_at(s)
    _, slope, sigma = _rates(data.eps_model(linear), t, s, linear, "hat")
    variance = slope**2 * (1 - a_t) + sigma**2
    beta = 1 - a_t / a_s
    assert_close(variance - (1 - a_s), beta - (1 - a_s) / (1 - a_t) * beta, rtol=0, atol=1e-12)
    assert variance - (1 - a_s) > 1e-6


def test_eta_0_on_standard_normal_data_is_a_rotation(schedule):
    """With alpha_bar = cos^2(angle), each step multiplies x by the cosine of the angle that is left
    behind."""
    data = GaussianMixture(torch.ones(1), torch.zeros(1, 3), torch.ones(1))
    x_T, times = normal(4, 3), timesteps(1000, 10)
    angle = schedule.alpha_bar.sqrt().acos()
    shrunk = (angle[times[:-1]] - angle[times[1:]]).cos().prod()
    assert_close(
        last(ddim_sample(data.eps_model(schedule), x_T, times, schedule)),
        shrunk * x_T,
        rtol=0,
        atol=1e-9,
    )


def test_eta_0_on_normal_data_is_the_map_between_quantiles_in_the_limit(linear):
    """The flow of the ODE (eq. 14) keeps x's quantile: x_0 = mean + std * (the quantile of x_T)."""
    mean, std = 0.4, 0.3
    data = GaussianMixture(torch.ones(1), torch.tensor([[mean]]), torch.tensor([std], dtype=F64))
    x_T, a = normal(50, 1), linear.alpha_bar[-1]
    exact = data.means + std * (x_T - a.sqrt() * data.means) / (a * std**2 + 1 - a).sqrt()
    sampled = last(ddim_sample(data.eps_model(linear), x_T, torch.arange(1000, -1, -1), linear))
    assert_close(sampled, exact, rtol=0, atol=0.01)


# --- the sampler ---


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0, "hat"])
def test_the_sampler_is_the_step_in_a_loop(linear, mixture, eta):
    x_T, times, model = (
        normal(5, 2),
        torch.tensor([1000, 700, 30, 2, 1, 0]),
        mixture.eps_model(linear),
    )
    theirs, generator, x = seeded(3), seeded(3), x_T
    steps = list(ddim_sample(model, x_T, times, linear, eta=eta, generator=theirs))
    assert [step.t.item() for step in steps] == times[1:].tolist()
    for step, (t, s) in zip(steps, itertools.pairwise(times), strict=True):
        eps = model(x, t)
        assert_close(step.x_0, predict_x0(eps, x, t, linear), rtol=0, atol=1e-12)
        z = draw(x, generator) if s > 0 and eta != 0 else None
        x = ddim_step(eps, x, t, s, z, linear, eta)
        assert_close(step.x, x, rtol=0, atol=0)
    assert torch.equal(generator.get_state(), theirs.get_state())


def test_eta_0_leaves_every_generator_untouched(linear, mixture):
    x_T, times, model = normal(2, 2), timesteps(1000, 5), mixture.eps_model(linear)
    one, each, default = seeded(0), [seeded(1), seeded(2)], torch.get_rng_state()
    results = [last(ddim_sample(model, x_T, times, linear, generator=g)) for g in (one, each, None)]
    assert_close(results[0], results[1], rtol=0, atol=0)
    assert_close(results[0], results[2], rtol=0, atol=0)
    assert_close(results[0], last(ddim_sample(model, x_T, times, linear, eta=0.0)), rtol=0, atol=0)
    for generator, seed in ((one, 0), (each[0], 1), (each[1], 2)):
        assert torch.equal(generator.get_state(), seeded(seed).get_state())
    assert torch.equal(default, torch.get_rng_state())


@pytest.mark.parametrize("eta", [0.5, 1.0, "hat"])
def test_the_last_step_draws_and_adds_nothing(linear, mixture, eta):
    generator, x = seeded(0), normal(3, 2)
    model, times = mixture.eps_model(linear), torch.tensor([400, 0])
    x_0 = last(ddim_sample(model, x, times, linear, eta=eta, generator=generator))
    assert torch.equal(generator.get_state(), seeded(0).get_state())
    assert_close(x_0, predict_x0(model(x, 400), x, 400, linear), rtol=0, atol=1e-12)
    assert_close(ddim_step(model(x, 400), x, 400, 0, None, linear, eta), x_0, rtol=0, atol=0)
    assert_close(
        ddim_step(model(x, 400), x, 400, 0, 9 * normal(3, 2), linear, eta), x_0, rtol=0, atol=0
    )


# --- inversion ---


def test_an_inverse_step_undoes_a_step_of_the_same_eps(schedule):
    eps, x = normal(3, 4), normal(3, 4, seed=1)
    for t, s in PAIRS:
        up = ddim_invert_step(eps, x, s, t, schedule)
        within = 1e-11 / schedule.alpha_bar_at(t).sqrt().item()
        assert_close(ddim_step(eps, up, t, s, None, schedule), x, rtol=0, atol=within)


def test_an_inverse_step_is_eq_13_by_hand(linear):
    eps, x = normal(3, 4), normal(3, 4, seed=1)
    a_t, a_s = linear.alpha_bar[700].item(), linear.alpha_bar[300].item()
    slope = math.sqrt((1 - a_t) / a_t) - math.sqrt((1 - a_s) / a_s)
    assert_close(
        ddim_invert_step(eps, x, 300, 700, linear),
        math.sqrt(a_t) * (x / math.sqrt(a_s) + slope * eps),
        rtol=0,
        atol=1e-12,
    )


def test_inversion_walks_the_grid_upwards_and_asks_where_it_stands(linear, mixture):
    asked = []

    def model(x, t):
        asked.append(t)
        return mixture.eps_model(linear)(x, t)

    x, times = mixture.sample(3, seeded(0)), torch.tensor([900, 400, 20, 0])
    steps = list(ddim_invert(model, x, times, linear))
    assert [step.t.item() for step in steps] == [20, 400, 900]
    assert [t.tolist() for t in asked] == [[1] * 3, [20] * 3, [400] * 3]
    assert_close(steps[0].x_0, x, rtol=0, atol=0)
    for step, (s, t), asked_at in zip(
        steps, [(0, 20), (20, 400), (400, 900)], (1, 20, 400), strict=True
    ):
        eps = mixture.eps_model(linear)(x, asked_at)
        assert_close(step.x_0, predict_x0(eps, x, s, linear), rtol=0, atol=0)
        x = ddim_invert_step(eps, x, s, t, linear)
        assert_close(step.x, x, rtol=0, atol=0)


def test_the_error_of_encoding_and_decoding_falls_at_first_order(linear, mixture):
    """Twice the steps, half the error, as Euler's method has it."""
    x_0, model = mixture.sample(200, seeded(0)), mixture.eps_model(linear)
    errors = []
    for S in (50, 100, 200):
        times = timesteps(1000, S)
        x_T = last(ddim_invert(model, x_0, times, linear))
        x = last(ddim_sample(model, x_T, times, linear))
        errors.append((x - x_0).norm(dim=1).mean().item())
    for coarse, fine in itertools.pairwise(errors):
        assert 1.6 < coarse / fine < 2.4, errors
    assert errors[-1] < 0.05


def test_an_encoding_is_normal_noise(linear, mixture):
    """On the full chain x_T has mean 0 and variance 1, within 4 standard errors and the error of
    Euler's method."""
    n = 2_000
    x_T = last(
        ddim_invert(
            mixture.eps_model(linear), mixture.sample(n, seeded(0)), timesteps(1000, 500), linear
        )
    )
    assert (x_T.mean(0).abs() < 4 / math.sqrt(n) + 0.01).all()
    assert ((x_T.var(0) - 1).abs() < 4 * math.sqrt(2 / n) + 0.02).all()


def test_no_gradient_is_kept_and_the_callers_mode_is_left_alone(linear):
    weight = torch.ones((), dtype=F64, requires_grad=True)
    for steps in (
        ddim_sample(lambda x, t: weight * x, normal(2, 2), timesteps(1000, 3), linear),
        ddim_invert(lambda x, t: weight * x, normal(2, 2), timesteps(1000, 3), linear),
    ):
        assert not next(steps).x.requires_grad
        assert torch.is_grad_enabled()


# --- what is refused ---


@pytest.mark.parametrize("eta", [-0.1, math.nan, math.inf, -math.inf])
def test_an_eta_that_is_no_amount_is_refused(linear, eta):
    x = normal(1, 2)
    for use in (
        lambda: ddim_sigma(2, 1, linear, eta),
        lambda: ddim_step(x, x, 2, 1, x, linear, eta),
        lambda: ddim_sample(lambda x, t: x, x, timesteps(1000, 5), linear, eta=eta),
    ):
        with pytest.raises(ValueError, match=rf"eta = {eta} must be a finite number of at least 0"):
            use()


def test_an_unknown_word_for_eta_is_refused(linear):
    x = normal(1, 2)
    with pytest.raises(ValueError, match=r"eta = 'hut' is unknown; choose one of \('hat',\)"):
        ddim_step(x, x, 2, 1, x, linear, "hut")
    with pytest.raises(ValueError, match="eta = 'hut' is unknown"):
        ddim_sample(lambda x, t: x, x, timesteps(1000, 5), linear, eta="hut")


@pytest.mark.parametrize(
    ("t", "s"), [(1000, 500), (2, 1), (900, 899), (torch.tensor([2, 900]), torch.tensor([1, 500]))]
)
def test_too_large_an_eta_is_refused_and_the_largest_is_named(schedule, t, s):
    x = normal(2, 2)
    with pytest.raises(ValueError, match=r"eta = 500 is too large.*at most") as caught:
        ddim_step(x, x, t, s, x, schedule, 500)
    largest = float(re.search(r"at most ([\d.]+)$", str(caught.value)).group(1))
    assert largest >= 1
    assert ddim_step(x, x, t, s, x, schedule, largest).isfinite().all()
    with pytest.raises(ValueError, match=f"eta = {largest + 2e-4:g} is too large"):
        ddim_step(x, x, t, s, x, schedule, largest + 2e-4)


def test_the_sampler_refuses_too_large_an_eta_at_the_call_and_names_the_grids_largest(linear):
    """That of the tightest step; the last one, to s = 0, adds no noise whatever eta is."""
    x, model, a = normal(1, 2), lambda x, t: x, linear.alpha_bar
    for times in (timesteps(1000, 5), torch.arange(1000, -1, -1), torch.tensor([3, 2, 0])):
        t, s = times[:-2], times[1:-1]
        largest = ((1 - a[t]) / (1 - a[t] / a[s])).sqrt().min().item()
        with pytest.raises(ValueError, match="eta = 3 is too large") as caught:
            ddim_sample(model, x, times, linear, eta=3)
        assert float(str(caught.value).rpartition(" ")[2]) == pytest.approx(largest, abs=1e-4)
    assert last(ddim_sample(model, x, torch.tensor([500, 0]), linear, eta=3)).isfinite().all()


def test_a_missing_draw_is_refused(linear):
    x = normal(2, 2)
    for eta in (0.5, "hat"):
        with pytest.raises(
            ValueError, match=f"z is None, but a step with eta = {eta!r} adds noise"
        ):
            ddim_step(x, x, torch.tensor([5, 5]), torch.tensor([0, 4]), None, linear, eta)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (torch.tensor([1000, 500, 500, 0]), r"times must strictly decrease, but times\[1\] = 500"),
        (torch.tensor([0, 500, 1000]), "must strictly decrease"),
        (torch.tensor([1001, 0]), "times = 1001 is outside"),
        (torch.tensor([5, 0, -1]), "times = -1 is outside"),
        (torch.tensor([1000, 1]), "must end at 0"),
        (torch.tensor([0]), "at least two"),
    ],
)
def test_bad_grids_are_refused_at_the_call(linear, times, message):
    for walk in (ddim_sample, ddim_invert):
        with pytest.raises(ValueError, match=message):
            walk(lambda x, t: x, normal(1, 2), times, linear)


def test_a_wrong_number_of_generators_is_refused_at_the_call(linear):
    for eta in (0.0, 1.0):
        with pytest.raises(ValueError, match="2 generators for a batch of 3"):
            ddim_sample(
                lambda x, t: x,
                normal(3, 2),
                timesteps(1000, 5),
                linear,
                eta=eta,
                generator=[seeded(0), seeded(1)],
            )


def test_shapes_and_times_that_do_not_fit_are_refused(linear):
    x = normal(2, 2)
    for use in (
        lambda: ddim_step(x, normal(3, 2), 2, 1, None, linear),
        lambda: ddim_step(x, x, 2, 1, normal(3, 2), linear),
        lambda: ddim_step(x, x, torch.tensor([2, 2, 2]), 1, None, linear),
        lambda: ddim_invert_step(x, normal(3, 2), 1, 2, linear),
    ):
        with pytest.raises(ValueError, match="shape"):
            use()
    for use in (
        lambda: ddim_step(x, x, 2, 2, None, linear),
        lambda: ddim_invert_step(x, x, 2, 2, linear),
        lambda: ddim_sigma(2, 2, linear, 1.0),
        lambda: ddim_sigma_hat(2, 2, linear),
    ):
        with pytest.raises(ValueError, match="s = 2 is not before t = 2"):
            use()


def test_a_coarse_chain_of_its_own_is_walked_too():
    """T = 50, real times."""
    schedule = NoiseSchedule.from_betas(cosine_betas(50))
    data = GaussianMixture(torch.ones(1), torch.tensor([[0.3]], dtype=F64), torch.zeros(1))
    times = torch.tensor([50, 20.5, 3.25, 0], dtype=F64)
    assert_close(
        last(ddim_sample(data.eps_model(schedule), normal(4, 1), times, schedule)),
        torch.full((4, 1), 0.3, dtype=F64),
        rtol=0,
        atol=1e-9,
    )
