"""SDEs, their reversal and their ODE: against the equations of mean and variance, the equation
of the density, exact mixtures, DDPM, DDIM and closed-form flows."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from diffusion_core.ddim import ddim_sample, ddim_step
from diffusion_core.ddpm import ddpm_step
from diffusion_core.exact import GaussianMixture
from diffusion_core.prediction import predict_x0
from diffusion_core.sampling import draw, last
from diffusion_core.schedules import (
    NoiseSchedule,
    karras_times,
    timesteps,
)
from diffusion_core.sde import (
    VESDE,
    VPSDE,
    SubVPSDE,
    continuous_beta,
    euler_maruyama,
    euler_maruyama_step,
    heun_sample,
    heun_step,
    langevin_step,
    log_likelihood,
    predictor_corrector_sample,
    probability_flow_drift,
    reverse_drift,
    score_from_eps,
)
from tests.conftest import SCHEDULES, normal, seeded

F64 = torch.float64
KINDS = {
    "vp": VPSDE(SCHEDULES["linear"]),
    "vp, cosine": VPSDE(SCHEDULES["cosine"]),
    "sub-vp": SubVPSDE(SCHEDULES["linear"]),
    "ve": VESDE(),
    "ve, short": VESDE(0.1, 20.0, 300),
}


@pytest.fixture(params=KINDS)
def sde(request):
    return KINDS[request.param]


def density(mixture, sde, x, t):
    """p_t(x) (B,) of the data under any SDE, from its rates alone."""
    signal, noise = sde.rates(t)
    variance = signal**2 * mixture.stds**2 + noise**2
    offset = x[:, None, :] - signal * mixture.means
    D = x.shape[1]
    each = (-0.5 * offset.square().sum(2) / variance).exp() / (2 * math.pi * variance) ** (D / 2)
    return (mixture.weights * each).sum(1)


def exact_score(mixture, sde):
    """The gradient of the log of that density, by autograd; one time for the whole batch."""

    def score(x, t):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_p = density(mixture, sde, x, t.flatten()[0]).log()
            return torch.autograd.grad(log_p.sum(), x)[0]

    return score


# --- coefficients and marginals ---


def test_beta_is_the_chains_at_whole_times_in_the_limit_of_small_steps(schedule):
    """A step of the chain is the SDE over one unit of time: what is kept is e^-beta(t)."""
    k = torch.arange(1, 1001)
    assert_close(-torch.expm1(-continuous_beta(k, schedule)), schedule.betas, rtol=1e-10, atol=0)
    assert continuous_beta(500, schedule).dtype == F64


def test_beta_is_constant_within_a_step_and_falls_off_at_its_lower_end(linear):
    a = linear.alpha_bar.log()
    for t, k in ((0, 1), (0.5, 1), (1, 1), (1.001, 2), (2, 2), (999.2, 1000), (1000, 1000)):
        assert_close(continuous_beta(t, linear), a[k - 1] - a[k], rtol=0, atol=0)
    assert continuous_beta(torch.tensor([[1, 2]]), linear).shape == (1, 2)


@pytest.mark.parametrize("t", [0.25, 2.5, 333.3, 999.9])
def test_beta_is_the_derivative_of_log_alpha_bar(schedule, t):
    h = 1e-4
    above, below = schedule.alpha_bar_at(t + h).log(), schedule.alpha_bar_at(t - h).log()
    assert_close(continuous_beta(t, schedule), (below - above) / (2 * h), rtol=1e-5, atol=0)


def test_marginals_solve_the_equations_of_mean_and_variance(sde):
    """dm/dt = a m, dV/dt = 2 a V + g^2, by the midpoint rule on a fine grid: log m is the integral
    of a, and V that of g^2, faded since."""
    parts = 32
    middle = (torch.arange(sde.T * parts, dtype=F64) + 0.5) / parts
    one = torch.ones(len(middle), 1, dtype=F64)
    a, g = sde.drift(one, middle)[:, 0], sde.diffusion(middle, one)[:, 0]
    log_mean = a.cumsum(0) / parts  # at the upper ends
    faded = log_mean - a / parts / 2  # at the middles
    for t in (1 / parts, 1.0, 1.5, 100.0, sde.T / 2, sde.T):
        n = round(t * parts)
        mean = log_mean[n - 1].exp()
        variance = ((2 * (log_mean[n - 1] - faded[:n])).exp() * g[:n] ** 2).sum() / parts
        signal, noise = sde.rates(t)
        assert_close(signal, mean, rtol=1e-9, atol=0)
        within = 1e-5 + (2 * a.abs().max().item() / parts) ** 2 / 20  # the midpoint rule's error
        assert_close(noise**2, variance, rtol=within, atol=0)


def test_rates_are_eq_29_by_hand(linear):
    for t in (0.0, 0.3, 1.0, 517.25, 1000.0):
        a = linear.alpha_bar_at(t)
        assert_close(VPSDE(linear).rates(t), linear.at(t, torch.ones((), dtype=F64)))
        assert_close(SubVPSDE(linear).rates(t), (a.sqrt(), 1 - a))
        sigma = 0.02 * (30 / 0.02) ** (t / 500) if t <= 500 else None
        if sigma:
            signal, noise = VESDE(0.02, 30, 500).rates(t)
            assert signal == 1
            assert_close(noise.item(), math.sqrt(sigma**2 - 0.02**2))
    assert VESDE().T == 1000 and VPSDE(linear).T == 1000 and SubVPSDE(linear).T == 1000
    assert VESDE(0.02, 30, 500).sigma(500) == pytest.approx(30)


def test_coefficients_are_eq_11_12_and_30_by_hand(linear):
    x = normal(3, 2)
    t = torch.tensor([1, 400, 1000])
    beta, a = -(1 - linear.betas[t - 1, None]).log(), linear.alpha_bar[t, None]
    assert_close(VPSDE(linear).drift(x, t), -beta / 2 * x)
    assert_close(VPSDE(linear).diffusion(t, x), beta.sqrt())
    assert_close(SubVPSDE(linear).drift(x, t), -beta / 2 * x)
    assert_close(SubVPSDE(linear).diffusion(t, x), (beta * (1 - a**2)).sqrt())
    sigma = 0.01 * 5000 ** (t[:, None].double() / 1000)
    assert_close(VESDE().drift(x, t), torch.zeros(3, 2, dtype=F64))
    assert_close(VESDE().diffusion(t, x), sigma * math.sqrt(2 * math.log(5000) / 1000))


def test_sub_vp_is_never_noisier_than_vp_and_ends_as_it_does(schedule):
    t = torch.arange(0, 1001)
    less, more = SubVPSDE(schedule).rates(t)[1], VPSDE(schedule).rates(t)[1]
    assert (less <= more).all()
    assert less[-1] == pytest.approx(more[-1].item(), abs=0.003)


def test_what_is_looked_up_fits_the_images(sde):
    x = normal(3, 1, 2, 2).float()
    for t in (2, 7.5, torch.tensor([1, 2, 3])):
        shape = (3, 1, 1, 1) if isinstance(t, torch.Tensor) else ()
        found = [sde.diffusion(t, x), *sde.marginal(t, x)]
        assert all(f.dtype == torch.float32 and f.shape == shape for f in found)
        assert sde.drift(x, t).dtype == torch.float32
        signal, noise = sde.rates(t)
        assert_close(found[1].flatten(), signal.float().reshape(-1), rtol=0, atol=0)
        assert_close(found[2].flatten(), noise.float().reshape(-1), rtol=0, atol=0)


# --- the score ---


def test_the_score_is_minus_eps_over_the_noise_rate(linear, mixture):
    x, t = normal(3, 2), torch.tensor([1.0, 400.5, 1000.0])
    score = score_from_eps(mixture.eps_model(linear), linear)
    assert_close(score(x, t), mixture.score(linear)(x, t))
    assert_close(score(x, 400), mixture.score(linear)(x, 400))


@pytest.mark.parametrize("t", [1, 10.5, 150, 299])
def test_one_model_knows_the_score_of_every_sde(sde, mixture, t):
    """The model knows the linear schedule only."""
    linear, x = SCHEDULES["linear"], normal(4, 2)
    score = score_from_eps(mixture.eps_model(linear), linear, sde)
    expected = exact_score(mixture, sde)(x, torch.tensor(t, dtype=F64))
    assert_close(score(x, torch.tensor(t)), expected, rtol=1e-6, atol=1e-6)
    assert_close(score(x, torch.full((4,), t)), expected, rtol=1e-6, atol=1e-6)


def test_the_model_sees_what_it_was_trained_on(linear):
    asked = []

    def model(x, t):
        asked.append((x, t))
        return torch.ones_like(x)

    x, sde = normal(3, 2).float(), VESDE()
    score = score_from_eps(model, linear, sde)(x, torch.tensor(600))
    ((seen, t),) = asked
    _, noise = sde.rates(600)
    assert t.shape == (3,)
    signal_seen, noise_seen = VPSDE(linear).rates(t[0])
    assert_close(noise_seen / signal_seen, noise)
    assert_close(seen, signal_seen.float() * x)
    assert_close(score, torch.full_like(x, -1 / noise.item()))


def test_where_there_is_no_score_is_said(linear):
    x, model = normal(2, 2), lambda x, t: x
    for sde in (None, VESDE(), SubVPSDE(linear)):
        with pytest.raises(ValueError, match="t = 0 is outside its domain"):
            score_from_eps(model, linear, sde)(x, torch.tensor(0))
    with pytest.raises(ValueError, match="noise_to_signal = 500 is outside"):
        score_from_eps(model, linear, VESDE(sigma_max=500.0))(x, torch.tensor(1000))


# --- the equation of the density ---


@pytest.mark.parametrize("t", [0.5, 20.5, 150.5, 290.5])
def test_the_density_obeys_three_equations(sde, mixture, t):
    """Fokker-Planck's (eq. 35) forwards; the same for time running backwards with eq. 6; and the
    ODE's (eq. 37), without a second derivative."""
    x, h = 0.7 * normal(40, 2), 1e-3
    later, before = density(mixture, sde, x, t + h), density(mixture, sde, x, t - h)
    change = (later - before) / (2 * h)
    x.requires_grad_()
    p, g = density(mixture, sde, x, t), sde.diffusion(t, x)
    slope = torch.autograd.grad(p.sum(), x, create_graph=True)[0]
    score = slope / p[:, None]

    def divergence(field):
        parts = [
            torch.autograd.grad(field[:, i].sum(), x, retain_graph=True)[0][:, i] for i in (0, 1)
        ]
        return sum(parts)

    known = lambda x, t: score
    spread = g**2 / 2 * divergence(slope)
    forward = -divergence(sde.drift(x, t) * p[:, None]) + spread
    backward = -divergence(reverse_drift(x, t, known, sde) * p[:, None]) - spread
    flow = -divergence(probability_flow_drift(x, t, known, sde) * p[:, None])
    for right in (forward, backward, flow):
        assert_close(right, change, rtol=0, atol=1e-4 * change.abs().max().item())


def test_drifts_are_eq_6_and_13_by_hand(linear):
    x, score = normal(3, 2), normal(3, 2, seed=1)
    sde, t, asked = SubVPSDE(linear), torch.tensor([3, 500, 999]), []

    def known(x, t):
        asked.append(t)
        return score

    beta, a = -(1 - linear.betas[t - 1, None]).log(), linear.alpha_bar[t, None]
    squared = beta * (1 - a**2)
    assert_close(reverse_drift(x, t, known, sde), -beta / 2 * x - squared * score)
    assert_close(probability_flow_drift(x, t, known, sde), -beta / 2 * x - squared / 2 * score)
    assert all(torch.equal(a, t) for a in asked)
    reverse_drift(x, 3, known, sde)
    probability_flow_drift(x, 3.5, known, sde)
    assert [a.item() for a in asked[2:]] == [3, 3.5]  # a score always gets a tensor


def test_the_flow_is_the_same_for_every_sde_at_full_contrast(sde):
    """d(x / signal) / d(noise / signal) = -noise score."""
    x, score, t, h = normal(3, 2), normal(3, 2, seed=1), 150.5, 1e-3
    signal, noise = sde.rates(t)
    ratio = [sde.rates(time)[1] / sde.rates(time)[0] for time in (t - h, t + h)]
    velocity = probability_flow_drift(x, t, lambda x, t: score, sde)
    growth = sde.coefficients(t)[0]  # signal' / signal
    rescaled = (velocity - growth * x) / signal
    expected = -noise * score * (ratio[1] - ratio[0]) / (2 * h)
    assert_close(rescaled, expected, rtol=1e-5, atol=1e-12)


# --- DDIM, DDPM ---


def test_ddim_is_the_flow_solved_exactly_for_a_standing_eps(linear):
    """An exponential integrator: with eps held, the ODE's path from t to s is one DDIM step."""
    x, eps, sde = normal(3, 2), normal(3, 2, seed=1), VPSDE(linear)
    held = lambda x, t: -eps / linear.at(t, x)[1]
    parts, moved = 8, x
    for i in range((700 - 500) * parts):
        t = 700 - i / parts
        half = moved - probability_flow_drift(moved, t, held, sde) / parts / 2
        moved = moved - probability_flow_drift(half, t - 0.5 / parts, held, sde) / parts
    assert_close(moved, ddim_step(eps, x, 700, 500, None, linear), rtol=0, atol=1e-5)
    euler = x - 200 * probability_flow_drift(x, 700, held, sde)
    assert (euler - moved).abs().max() > 0.1  # Euler's step of the ODE in t is another


def test_ancestral_sampling_is_the_reverse_sde_to_second_order_in_beta():
    """App. E: the difference of the means, and of the variances, falls as beta^2."""
    x, eps, zero, one = normal(3, 2), normal(3, 2, seed=1), torch.zeros(3, 2), torch.ones(3, 2)
    zero, one = zero.double(), one.double()
    means, variances = [], []
    for beta in (1e-2, 1e-3):
        schedule = NoiseSchedule(torch.tensor([1, 0.6, 0.6 * (1 - beta)], dtype=F64))
        sde = VPSDE(schedule)
        score = -eps / schedule.at(2, x)[1]
        drift = reverse_drift(x, 2, lambda x, t, score=score: score, sde)
        pairs = [
            (
                euler_maruyama_step(drift, x, 2, 1, z, sde),
                ddpm_step(eps, x, 2, 1, z, schedule, "beta"),
            )
            for z in (zero, one)
        ]
        means.append((pairs[0][0] - pairs[0][1]).abs().max())
        ours, theirs = (pairs[1][k] - pairs[0][k] for k in (0, 1))
        variances.append((ours**2 - theirs**2).abs().max())
    for coarse, fine in (means, variances):
        assert 1.9 < math.log10(coarse / fine) < 2.1
    assert means[1] == pytest.approx(1e-6 / 8 * x.abs().max().item(), rel=0.01)


# --- Euler-Maruyama ---


def test_a_step_is_eq_6_by_hand(linear):
    drift, x, z = normal(3, 2), normal(3, 2, seed=1), normal(3, 2, seed=2)
    t, s = torch.tensor([2.0, 500.0, 1000.0]), torch.tensor([0.5, 499.0, 900.0])
    beta = -(1 - linear.betas[t.long() - 1, None]).log()
    length = (t - s)[:, None]
    by_hand = x - length * drift + (beta * length).sqrt() * z
    assert_close(euler_maruyama_step(drift, x, t, s, z, VPSDE(linear)), by_hand)
    early = euler_maruyama_step(drift, x, 0.5, 0.2, z, VPSDE(linear))
    beta = -math.log(1 - linear.betas[0])
    assert_close(early, x - 0.3 * drift + math.sqrt(0.3 * beta) * z)
    found = euler_maruyama_step(drift.float(), x.float(), 9, 8, z.float(), VESDE())
    assert found.dtype == torch.float32


def test_the_sampler_is_the_step_in_a_loop(sde, mixture):
    linear = SCHEDULES["linear"]
    x, times, asked = normal(3, 2), torch.tensor([300, 120.5, 7, 1, 0], dtype=F64), []
    known = score_from_eps(mixture.eps_model(linear), linear, sde)

    def score(x, t):
        asked.append(t.tolist())
        return known(x, t)

    theirs, generator = seeded(3), seeded(3)
    steps = list(euler_maruyama(score, x, times, sde, generator=theirs))
    assert asked == [[t] * 3 for t in times[:-1].tolist()]
    assert [step.t.item() for step in steps] == times[1:].tolist()
    for step, (t, s) in zip(steps, itertools.pairwise(times), strict=True):
        signal, noise = sde.rates(t)
        assert_close(step.x_0, (x + noise**2 * known(x, t)) / signal)
        z = draw(x, generator) if s > 0 else torch.zeros_like(x)
        x = euler_maruyama_step(reverse_drift(x, t, known, sde), x, t, s, z, sde)
        assert_close(step.x, x, rtol=0, atol=1e-12)
    assert torch.equal(generator.get_state(), theirs.get_state())


def test_the_predicted_x0_is_ddpms(linear, mixture):
    x, model = normal(3, 2), mixture.eps_model(linear)
    (step,) = euler_maruyama(
        score_from_eps(model, linear), x, torch.tensor([400, 0]), VPSDE(linear)
    )
    assert_close(step.x_0, predict_x0(model(x, 400), x, 400, linear))


@pytest.mark.parametrize("kind", ["vp", "sub-vp", "ve"])
@pytest.mark.parametrize("corrections", [None, 1])
def test_the_reverse_sde_draws_from_the_mixture(mixture, kind, corrections):
    """Means and shares of the components, within 4 standard errors and the bias of the steps."""
    linear, sde, n, generator = SCHEDULES["linear"], KINDS[kind], 2_000, seeded(1)
    score = score_from_eps(mixture.eps_model(linear), linear, sde)
    x_T = sde.rates(sde.T)[1] * draw(torch.zeros(n, 2, dtype=F64), generator)
    if corrections is None:
        steps = euler_maruyama(score, x_T, timesteps(1000, 500), sde, generator=generator)
    else:
        steps = predictor_corrector_sample(
            score, x_T, timesteps(1000, 250), sde, corrections=corrections, generator=generator
        )
    x = last(steps)
    nearest = (x[:, None] - mixture.means).norm(dim=2).argmin(1)
    for k, (weight, mean, std) in enumerate(
        zip(mixture.weights, mixture.means, mixture.stds, strict=True)
    ):
        own = x[nearest == k]
        share_error = math.sqrt(weight * (1 - weight) / n)
        assert abs(len(own) / n - weight) < 4 * share_error + 0.01
        assert ((own.mean(0) - mean).abs() < 4 * std / math.sqrt(len(own)) + 0.01).all()
        spread = (own - mean).square().mean().sqrt()
        assert abs(spread / std - 1) < 0.15


# --- Heun ---


def affine(mean=0.4, std=0.3):
    """Normal data, whose flow keeps each point's quantile."""
    return GaussianMixture(
        torch.ones(1), torch.tensor([[mean]], dtype=F64), torch.tensor([std], dtype=F64)
    )


def quantile_map(x, t, s, data, schedule):
    """Where the flow carries x from t to s, exactly."""
    (a_t, n_t), (a_s, n_s) = VPSDE(schedule).rates(t), VPSDE(schedule).rates(s)
    spread_t, spread_s = ((a * data.stds) ** 2 + n**2 for a, n in ((a_t, n_t), (a_s, n_s)))
    return a_s * data.means + (spread_s / spread_t).sqrt() * (x - a_t * data.means)


def test_heun_is_of_second_order_and_ddim_of_first(schedule):
    """On a flow that is known in closed form, from T to t = 1."""
    data, x_T = affine(), normal(20, 1)
    exact = quantile_map(x_T, 1000, 1, data, schedule)
    orders = {}
    for sampler in (heun_sample, ddim_sample):
        errors = []
        for S in (41, 81):  # the last step, from 1 to 0, is left out
            steps = list(
                sampler(data.eps_model(schedule), x_T, karras_times(schedule, S), schedule)
            )
            errors.append((steps[-2].x - exact).abs().max().item())
        orders[sampler] = math.log2(errors[0] / errors[1])
    assert 1.8 < orders[heun_sample] < 2.3
    assert 0.8 < orders[ddim_sample] < 1.2


def test_a_heun_step_is_edms_algorithm_by_hand(linear, mixture):
    x, model = normal(3, 2), mixture.eps_model(linear)
    a_t, a_s = linear.alpha_bar[700], linear.alpha_bar[300]
    sigma_t, sigma_s = ((1 - a_t) / a_t).sqrt(), ((1 - a_s) / a_s).sqrt()
    denoised = lambda full, t, sigma: full - sigma * model(linear.alpha_bar[t].sqrt() * full, t)
    full = x / a_t.sqrt()
    d = (full - denoised(full, 700, sigma_t)) / sigma_t
    euler = full + (sigma_s - sigma_t) * d
    ahead = (euler - denoised(euler, 300, sigma_s)) / sigma_s
    by_hand = a_s.sqrt() * (full + (sigma_s - sigma_t) * (d / 2 + ahead / 2))
    assert_close(heun_step(model, model(x, 700), x, 700, 300, linear), by_hand)
    assert_close(
        heun_step(model, model(x, 700), x, 700, 0, linear),
        ddim_step(model(x, 700), x, 700, 0, None, linear),
    )


def test_heun_asks_twice_a_step_and_once_in_the_last(linear, mixture):
    asked = []

    def model(x, t):
        asked.append(t.tolist())
        return mixture.eps_model(linear)(x, t)

    x, times = normal(2, 2), torch.tensor([900, 400, 20, 0])
    default = torch.get_rng_state()
    steps = list(heun_sample(model, x, times, linear))
    assert asked == [[t] * 2 for t in (900, 400, 400, 20, 20)]
    assert [step.t.item() for step in steps] == [400, 20, 0]
    assert torch.equal(default, torch.get_rng_state())
    for step, (t, s) in zip(steps, itertools.pairwise(times), strict=True):
        eps = mixture.eps_model(linear)(x, t)
        assert_close(step.x_0, predict_x0(eps, x, t, linear))
        x = heun_step(mixture.eps_model(linear), eps, x, t, s, linear)
        assert_close(step.x, x, rtol=0, atol=0)
    assert last(heun_sample(model, x.float(), times, linear)).dtype == torch.float32


# --- Langevin ---


@pytest.mark.parametrize(("kind", "alpha"), [("vp", 1 - SCHEDULES["linear"].betas[499]), ("ve", 1)])
def test_a_langevin_step_is_alg_4_and_5_by_hand(kind, alpha):
    score, x, z = normal(3, 2, 2), normal(3, 2, 2, seed=1), normal(3, 2, 2, seed=2)
    norm = lambda v: sum(one.square().sum().sqrt() for one in v) / 3
    length = 2 * alpha * (0.2 * norm(z) / norm(score)) ** 2
    by_hand = x + length * score + (2 * length).sqrt() * z
    assert_close(langevin_step(score, x, 500, z, KINDS[kind], 0.2), by_hand)


def test_corrections_bring_a_wrong_spread_back(linear):
    """N(0, 0.5) in place of N(0, 1), which is p_t of standard normal data."""
    x, sde, generator = 0.5**0.5 * normal(300, 20), VPSDE(linear), seeded(1)
    for _ in range(200):
        x = langevin_step(-x, x, 500, draw(x, generator), sde, 0.1)
    assert x.var() == pytest.approx(1, abs=0.05)


def test_the_corrector_works_between_steps_only(linear, mixture):
    asked = []

    def score(x, t):
        asked.append(t[0].item())
        return mixture.score(linear)(x, t)

    x, times, sde = normal(3, 2), torch.tensor([500, 100, 0]), VPSDE(linear)
    theirs, generator = seeded(0), seeded(0)
    steps = list(
        predictor_corrector_sample(score, x, times, sde, snr=0.1, corrections=2, generator=theirs)
    )
    assert asked == [500, 100, 100, 100]
    assert [step.t.item() for step in steps] == [100, 0]
    known = mixture.score(linear)
    x = euler_maruyama_step(reverse_drift(x, 500, known, sde), x, 500, 100, draw(x, generator), sde)
    for _ in range(2):
        x = langevin_step(known(x, 100), x, 100, draw(x, generator), sde, 0.1)
    assert_close(steps[0].x, x)
    assert torch.equal(generator.get_state(), theirs.get_state())
    assert_close(steps[1].x, x - 100 * reverse_drift(x, 100, known, sde))
    plain = euler_maruyama(known, x, times, sde, generator=seeded(5))
    same = predictor_corrector_sample(known, x, times, sde, corrections=0, generator=seeded(5))
    assert_close(last(same), last(plain), rtol=0, atol=0)
    times = torch.tensor([500, 0.5, 0], dtype=F64)  # corrected at 0.5
    usual = predictor_corrector_sample(known, x, times, sde, generator=seeded(5))
    named = predictor_corrector_sample(
        known, x, times, sde, snr=0.16, corrections=1, generator=seeded(5)
    )
    assert_close(last(usual), last(named), rtol=0, atol=0)
    by_hand = euler_maruyama_step(
        reverse_drift(x, 500, known, sde), x, 500, 0.5, draw(x, g := seeded(5)), sde
    )
    by_hand = langevin_step(known(by_hand, 0.5), by_hand, 0.5, draw(x, g), sde, 0.16)
    usual = predictor_corrector_sample(known, x, times, sde, generator=seeded(5))
    assert_close(next(usual).x, by_hand)


# --- likelihood ---


def test_the_likelihood_of_a_mixture_comes_out_at_second_order(linear, mixture):
    x = mixture.sample(10, seeded(0))
    model, exact = mixture.eps_model(linear), mixture.log_prob(linear)(x, 0)
    prior = lambda x: mixture.log_prob(linear)(x, 1000)
    errors = []
    for S in (150, 300):
        times = karras_times(linear, S)
        found = log_likelihood(model, x, times, linear, log_prior=prior)
        errors.append((found - exact).abs().max().item())
    assert 1.7 < math.log2(errors[0] / errors[1]) < 2.3
    assert errors[1] < 0.005
    assert found.dtype == F64 and found.shape == (10,)


def test_the_likelihood_where_the_grid_ends(schedule):
    """Above 0 it is that of the noised data, x included. In float32, by the default prior too."""
    data, times, x = affine(0.0, 1.0), karras_times(schedule, 601)[:-1], normal(5, 1)  # ends at 1
    found = log_likelihood(data.eps_model(schedule), x.float(), times, schedule)
    exact = -0.5 * (x**2 + math.log(2 * math.pi))[:, 0]
    assert found.dtype == F64
    assert_close(found, exact, rtol=0, atol=0.01)
    data, prior = affine(), lambda x: affine().log_prob(schedule)(x, 1000)
    x = data.means + data.stds * x
    found = log_likelihood(data.eps_model(schedule), x, times, schedule, log_prior=prior)
    assert_close(found, data.log_prob(schedule)(x, 1), rtol=0, atol=0.005)


def test_random_signs_estimate_the_divergence(linear, mixture):
    """Exactly in one dimension, and on average in two, within 4 standard errors."""
    times = karras_times(linear, 20)
    x = normal(4, 1)
    model = affine().eps_model(linear)
    assert_close(
        log_likelihood(model, x, times, linear, probes=3, generator=seeded(0)),
        log_likelihood(model, x, times, linear),
    )
    x = mixture.sample(1, seeded(4))
    model = lambda x, t: x @ torch.tensor([[0.5, 0.3], [0.3, -0.1]], dtype=F64)
    times = torch.tensor([500, 300, 100], dtype=F64)
    many = log_likelihood(model, x.expand(2000, 2), times, linear, probes=1, generator=seeded(0))
    exact = log_likelihood(model, x, times, linear)
    assert many.std() > 0
    assert abs(many.mean() - exact) < 4 * many.std() / math.sqrt(2000)
    mean_of_8 = log_likelihood(
        model, x.expand(2000, 2), times, linear, probes=8, generator=seeded(0)
    )
    assert mean_of_8.std() == pytest.approx(many.std().item() / math.sqrt(8), rel=0.1)


def test_images_keep_their_shape_in_the_likelihood(linear):
    """A field that mixes the elements of an image, with a known divergence."""
    times = torch.tensor([300, 200], dtype=F64)
    seen = []

    def model(x, t):
        seen.append((x.shape, t.tolist()))
        return 2 * x.flip(2) + 3 * x

    x, a = normal(2, 1, 2, 2), linear.alpha_bar
    found = log_likelihood(model, x, times, linear)
    assert seen == [((2, 1, 2, 2), [t] * 2) for t in (200, 300)]
    # by hand: one Heun step up
    ratio = ((1 - a) / a).sqrt()
    h = ratio[300] - ratio[200]
    eps = lambda full, t: a[t].sqrt() * (2 * full.flip(2) + 3 * full)
    full = x / a[200].sqrt()
    first = eps(full, 200)
    end = full + h / 2 * (first + eps(full + h * first, 300))
    x_T = a[300].sqrt() * end
    log_p = (-0.5 * (x_T**2 + math.log(2 * math.pi))).flatten(1).sum(1)
    half = (ratio[300] / ratio[200]).log() / 2  # the trapezoid rule in log sigma
    trace = 4 * 3 * half * (ratio[200] * a[200].sqrt() + ratio[300] * a[300].sqrt())
    assert_close(found, log_p + 2 * (a[300] / a[200]).log() + trace)
    # from the data: sigma begins at 0
    found = log_likelihood(model, x, torch.tensor([200, 0]), linear)
    h = ratio[200]
    first = 2 * x.flip(2) + 3 * x
    end = x + h / 2 * (first + eps(x + h * first, 200))
    log_p = (-0.5 * (a[200] * end**2 + math.log(2 * math.pi))).flatten(1).sum(1)
    assert_close(found, log_p + 2 * a[200].log() + h / 2 * 4 * 3 * (1 + a[200].sqrt()))


# --- what is refused ---


def test_no_gradient_is_kept_and_the_callers_mode_is_left_alone(linear):
    weight = torch.ones((), dtype=F64, requires_grad=True)
    model = lambda x, t: weight * x
    times, sde, x = timesteps(1000, 3), VPSDE(linear), normal(2, 2)
    for steps in (
        euler_maruyama(model, x, times, sde),
        predictor_corrector_sample(model, x, times, sde),
        heun_sample(model, x, times, linear),
    ):
        assert not next(steps).x.requires_grad
        assert torch.is_grad_enabled()
    assert not log_likelihood(model, x, times, linear).requires_grad


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (torch.tensor([1000, 500, 500, 0]), r"times must strictly decrease, but times\[1\] = 500"),
        (torch.tensor([1001, 0]), "times = 1001 is outside"),
        (torch.tensor([1000, 1]), "must end at 0"),
        (torch.tensor([0]), "at least two"),
    ],
)
def test_bad_grids_are_refused_at_the_call(linear, times, message):
    x, model = normal(1, 2), lambda x, t: x
    for call in (
        lambda: euler_maruyama(model, x, times, VPSDE(linear)),
        lambda: predictor_corrector_sample(model, x, times, VPSDE(linear)),
        lambda: heun_sample(model, x, times, linear),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    if "end at 0" not in message:
        with pytest.raises(ValueError, match=message):
            log_likelihood(model, x, times, linear)


def test_other_arguments_that_make_no_sense_are_refused(linear):
    x, times, sde = normal(3, 2), timesteps(1000, 5), VPSDE(linear)
    score = lambda x, t: x
    two = [seeded(0), seeded(1)]
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        euler_maruyama(score, x, times, sde, generator=two)
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        predictor_corrector_sample(score, x, times, sde, generator=two)
    for snr in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"snr = {snr} must be a finite number above 0"):
            predictor_corrector_sample(score, x, times, sde, snr=snr)
    with pytest.raises(ValueError, match="corrections = -1 must be at least 0"):
        predictor_corrector_sample(score, x, times, sde, corrections=-1)
    with pytest.raises(ValueError, match="probes = -1 must be at least 0"):
        log_likelihood(score, x, times, linear, probes=-1)
    for low, high in ((0, 1), (1, 1), (2, 1), (-1, 1), (1, math.inf), (math.nan, 1)):
        with pytest.raises(ValueError, match="expected 0 < sigma_min < sigma_max"):
            VESDE(low, high)
    with pytest.raises(TypeError, match=r"T = 1.5 is float"):
        VESDE(T=1.5)
    with pytest.raises(ValueError, match="T = 0 must be at least 1"):
        VESDE(T=0)
    assert VESDE(T=1).T == 1


def test_shapes_and_times_that_do_not_fit_are_refused(linear, sde):
    x, other = normal(2, 2), normal(3, 2)
    for use in (
        lambda: euler_maruyama_step(other, x, 2, 1, x, sde),
        lambda: euler_maruyama_step(x, x, 2, 1, other, sde),
        lambda: langevin_step(other, x, 2, x, sde, 0.1),
        lambda: langevin_step(x, x, 2, other, sde, 0.1),
        lambda: heun_step(lambda x, t: x, other, x, 2, 1, linear),
        lambda: sde.drift(x, torch.tensor([1, 2, 3])),
        lambda: sde.diffusion(torch.tensor([1, 2, 3]), x),
        lambda: sde.marginal(torch.tensor([1, 2, 3]), x),
        lambda: heun_step(lambda x, t: x, x, x, torch.tensor([3, 2]), 1, linear),
        lambda: heun_step(lambda x, t: x, x, x, 3, torch.tensor([2, 1]), linear),
    ):
        with pytest.raises(ValueError, match="shape"):
            use()
    for s in (2, 3):
        with pytest.raises(ValueError, match="a step goes from t to an earlier s"):
            euler_maruyama_step(x, x, 2, s, x, sde)
    with pytest.raises(ValueError, match="s = 2 is not before t = 2"):
        heun_step(lambda x, t: x, x, x, 2, 2, linear)
    for t in (-1, sde.T + 1):
        for look_up in (sde.rates, sde.coefficients):
            with pytest.raises(ValueError, match=f"t = {t} is outside its domain"):
                look_up(t)
    with pytest.raises(ValueError, match="s = -1 is outside its domain"):
        euler_maruyama_step(x, x, 2, -1, x, sde)
    with pytest.raises(ValueError, match=r"t = -0\.5 is outside its domain"):
        euler_maruyama_step(x, x, -0.5, 0, x, sde)
    with pytest.raises(TypeError, match="cannot hold every time step"):
        sde.rates(torch.tensor(3.0, dtype=torch.bfloat16))
