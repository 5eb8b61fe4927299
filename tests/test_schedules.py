"""The table, its look-ups, and the grids."""

import math

import pytest
import torch
from torch.testing import assert_close

from diffusion_core.schedules import (
    NoiseSchedule,
    cosine_betas,
    expand,
    karras_times,
    linear_betas,
    make_schedule,
    scaled_linear_betas,
    timesteps,
)

F64 = torch.float64


def test_linear_betas_are_the_papers():
    betas = linear_betas()
    assert betas.shape == (1000,)
    assert betas.dtype == F64
    assert betas[0] == 1e-4
    assert betas[-1] == 0.02
    assert_close(
        betas.diff(), torch.full((999,), (0.02 - 1e-4) / 999, dtype=F64), rtol=0, atol=1e-15
    )
    assert linear_betas(10, 0.1, 0.2)[[0, 9]].tolist() == [0.1, 0.2]
    assert linear_betas(1, 0.1, 0.2).tolist() == [0.1]


def test_scaled_linear_roots_are_linear():
    betas = scaled_linear_betas()
    assert betas.shape == (1000,)
    assert betas.dtype == F64
    roots = betas.sqrt()
    assert_close(
        roots[[0, -1]], torch.tensor([0.00085, 0.012], dtype=F64).sqrt(), rtol=0, atol=1e-15
    )
    assert_close(roots.diff(), roots.diff()[:1].expand(999), rtol=0, atol=1e-15)
    assert_close(
        scaled_linear_betas(3, 0.04, 0.16),
        torch.tensor([0.04, 0.09, 0.16], dtype=F64),
        rtol=0,
        atol=1e-15,
    )


def test_cosine_alpha_bar_is_a_squared_cosine_until_the_cap():
    alpha_bar = NoiseSchedule.from_betas(cosine_betas()).alpha_bar
    for t in (1, 10, 500, 998):
        f = [math.cos((u / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (0, t)]
        assert alpha_bar[t].item() == pytest.approx(f[1] / f[0], rel=1e-12)
    capped = (cosine_betas() == 0.999).nonzero().flatten().tolist()
    assert capped == [999]
    assert (cosine_betas(beta_max=0.5) <= 0.5).all()
    assert_close(cosine_betas(100, s=0.02)[:1], _cosine_beta_1(100, 0.02), rtol=0, atol=1e-14)
    assert torch.isfinite(cosine_betas(100, s=0.0)).all()


def _cosine_beta_1(T, s):
    f = [math.cos((u / T + s) / (1 + s) * math.pi / 2) ** 2 for u in (0, 1)]
    return torch.tensor([1 - f[1] / f[0]], dtype=F64)


@pytest.mark.parametrize("make", [linear_betas, scaled_linear_betas, cosine_betas])
def test_a_schedule_needs_whole_steps(make):
    for T in (0, -3):
        with pytest.raises(ValueError, match=f"T = {T} must be at least 1"):
            make(T)
    with pytest.raises(TypeError, match=r"T = 10\.0 is float, expected int"):
        make(10.0)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, math.nan])
def test_betas_lie_between_0_and_1(beta):
    for make in (linear_betas, scaled_linear_betas):
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            make(10, beta, 0.5)
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            make(10, 0.5, beta)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        cosine_betas(10, beta_max=beta)
    with pytest.raises(ValueError, match="s = "):
        cosine_betas(10, s=-0.1 if not math.isnan(beta) else beta)


@pytest.mark.parametrize("make", [linear_betas, scaled_linear_betas])
def test_the_first_bad_end_is_named(make):
    with pytest.raises(ValueError, match=r"beta = -0\.5"):
        make(10, -0.5, 2.0)


def test_the_table_is_the_running_product():
    betas = torch.tensor([0.1, 0.2, 0.5], dtype=F64)
    schedule = NoiseSchedule.from_betas(betas)
    assert_close(
        schedule.alpha_bar, torch.tensor([1, 0.9, 0.72, 0.36], dtype=F64), rtol=0, atol=1e-15
    )
    assert schedule.T == 3
    assert_close(schedule.betas, betas, rtol=0, atol=1e-15)


def test_the_table_is_float64_whatever_the_betas(schedule):
    assert schedule.alpha_bar.dtype == F64
    assert NoiseSchedule.from_betas(linear_betas().float()).alpha_bar.dtype == F64


def test_the_table_is_a_copy():
    table = torch.tensor([1, 0.5], dtype=F64)
    schedule = NoiseSchedule(table)
    table[1] = 0.1
    assert schedule.alpha_bar[1] == 0.5


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (torch.tensor([1.0, 0.5]), TypeError, "float64"),
        ([1.0, 0.5], TypeError, "float64 tensor, got list"),
        (torch.tensor([1.0], dtype=F64), ValueError, r"\(T\+1,\)"),
        (torch.ones(2, 2, dtype=F64), ValueError, r"\(2, 2\)"),
        (torch.tensor([0.9, 0.5], dtype=F64), ValueError, r"alpha_bar\[0\] = 0.9"),
        (torch.tensor([1, 0.5, 0.5], dtype=F64), ValueError, r"alpha_bar\[2\] = 0.5 >="),
        (torch.tensor([1, 0.5, 0.6], dtype=F64), ValueError, r"alpha_bar\[2\] = 0.6 >="),
        (torch.tensor([1, 0.5, 0.0], dtype=F64), ValueError, r"alpha_bar\[2\] = 0"),
        (torch.tensor([1, 0.5, 0.6, 0.2, 0.3], dtype=F64), ValueError, r"alpha_bar\[2\] = 0.6 >="),
        (torch.tensor([1, -0.5, -0.6], dtype=F64), ValueError, r"alpha_bar\[1\] = -0.5"),
        (torch.tensor([1, math.nan, 0.1], dtype=F64), ValueError, r"alpha_bar\[1\] is NaN"),
        (torch.tensor([1, math.nan, math.nan], dtype=F64), ValueError, r"alpha_bar\[1\] is NaN"),
    ],
)
def test_bad_tables_are_refused(table, error, message):
    with pytest.raises(error, match=message):
        NoiseSchedule(table)


@pytest.mark.parametrize("wrong", [1.0, 0.0, -0.1, math.nan])
def test_the_first_bad_beta_is_named(wrong):
    with pytest.raises(ValueError, match=f"beta_2 = {wrong:g} must"):
        NoiseSchedule.from_betas(torch.tensor([0.1, wrong, 0.5, 2.0]))


@pytest.mark.parametrize("betas", [torch.zeros(0), torch.ones(2, 2), 0.1])
def test_betas_must_be_a_vector(betas):
    with pytest.raises(ValueError, match=r"betas must be a tensor of shape \(T,\)"):
        NoiseSchedule.from_betas(betas)


def test_look_up_at_whole_times_is_the_table(schedule):
    t = torch.arange(1001)
    assert torch.equal(schedule.alpha_bar_at(t), schedule.alpha_bar)
    assert torch.equal(schedule.alpha_bar_at(t.float()), schedule.alpha_bar)
    assert schedule.alpha_bar_at(0) == 1
    assert schedule.alpha_bar_at(1000).shape == ()
    assert schedule.alpha_bar_at(t.reshape(7, 143)).shape == (7, 143)


def test_log_alpha_bar_is_linear_between_the_steps(schedule):
    for t in (0.25, 1.5, 499.9, 999.75):
        low = math.floor(t)
        share = t - low
        logs = schedule.alpha_bar.log()
        expected = math.exp((1 - share) * logs[low].item() + share * logs[low + 1].item())
        assert schedule.alpha_bar_at(t).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("t", [-1, 1001, math.nan, math.inf, torch.tensor([3.0, -0.1])])
def test_times_outside_the_domain_are_named(linear, t):
    with pytest.raises(ValueError, match=r"t = .* outside its domain 0 <= t <= 1000"):
        linear.alpha_bar_at(t)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.bool, torch.complex64])
def test_times_that_cannot_hold_every_step_are_refused(linear, dtype):
    with pytest.raises(TypeError, match="dtype"):
        linear.alpha_bar_at(torch.ones(2, dtype=dtype))


def test_the_pair_of_rates(schedule):
    like = torch.zeros(3, 2, 4, dtype=F64)
    signal, noise = schedule.at(torch.tensor([0, 10, 1000]), like)
    assert signal.shape == noise.shape == (3, 1, 1)
    assert_close(signal**2 + noise**2, torch.ones(3, 1, 1, dtype=F64), rtol=0, atol=1e-15)
    assert_close(signal.flatten(), schedule.alpha_bar[[0, 10, 1000]].sqrt(), rtol=0, atol=0)
    assert noise[0] == 0
    assert schedule.at(5, like)[0].shape == ()
    assert schedule.at(5, like.bfloat16())[0].dtype == torch.bfloat16
    assert_close(
        schedule.at(5, like.float())[1], (1 - schedule.alpha_bar[5]).sqrt().float(), rtol=0, atol=0
    )


def test_a_time_that_fits_no_batch_is_refused(linear):
    with pytest.raises(ValueError, match=r"shape \(2,\).*B = 3"):
        linear.at(torch.tensor([1, 2]), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"shape \(3, 1\)"):
        linear.at(torch.ones(3, 1), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"shape \(2,\).*the batch size"):
        linear.at(torch.ones(2), torch.zeros(()))


def test_expand_casts_once():
    like = torch.zeros(2, 3, 4, 5, dtype=torch.float32)
    out = expand(torch.tensor([1 / 3, 2 / 3], dtype=F64), like)
    assert out.shape == (2, 1, 1, 1)
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == torch.tensor([1 / 3, 2 / 3]).tolist()


def test_beta_at_is_the_chains_beta(schedule):
    like = torch.zeros(3, 2, dtype=F64)
    t = torch.tensor([1, 7, 1000])
    assert_close(schedule.beta_at(t, like).flatten(), schedule.betas[t - 1], rtol=0, atol=1e-15)
    assert schedule.beta_at(t, like).shape == (3, 1)
    with pytest.raises(ValueError, match="1 <= t <= 1000"):
        schedule.beta_at(0, like)
    with pytest.raises(ValueError, match=r"t = 1.5 is not a whole step.*1\.\.1000"):
        schedule.beta_at(1.5, like)


def test_snr(schedule):
    assert schedule.snr(0) == math.inf
    a = schedule.alpha_bar[300].item()
    assert schedule.snr(300).item() == pytest.approx(a / (1 - a), rel=1e-14)
    assert (schedule.snr(torch.arange(1, 1001)).diff() < 0).all()


def test_time_at_inverts_the_ratio(schedule):
    t = torch.cat([torch.arange(0, 1001, dtype=F64), torch.tensor([0.3, 1.5, 77.7, 999.9])])
    ratio = ((1 - schedule.alpha_bar_at(t)) / schedule.alpha_bar_at(t)).sqrt()
    assert_close(schedule.time_at(ratio), t, rtol=0, atol=1e-8)
    assert schedule.time_at(ratio.reshape(5, 201)).shape == (5, 201)
    with pytest.raises(ValueError, match="noise_to_signal = -1"):
        schedule.time_at(-1)


def test_time_at_ends_with_the_schedule(schedule):
    last = ((1 - schedule.alpha_bar[-1]) / schedule.alpha_bar[-1]).sqrt().item()
    assert schedule.time_at(last * (1 + 5e-13)) == 1000  # rounding of the caller is forgiven
    with pytest.raises(ValueError, match="noise_to_signal"):
        schedule.time_at(last * (1 + 1e-9))


@pytest.mark.parametrize(
    ("spacing", "grid"),
    [
        ("trailing", [1000, 800, 600, 400, 200, 0]),
        ("leading", [801, 601, 401, 201, 1, 0]),
        ("linspace", [1000, 750, 501, 251, 1, 0]),
        ("quadratic", [801, 451, 201, 51, 1, 0]),
    ],
)
def test_grids(spacing, grid):
    times = timesteps(1000, 5, spacing)
    assert times.dtype == torch.int64
    assert times.tolist() == grid


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "quadratic"])
@pytest.mark.parametrize("S", [1, 2, 3, 7, 50, 100, 333, 999, 1000])
def test_every_grid_decreases_to_0(spacing, S):
    if S < 2 and spacing in ("linspace", "quadratic"):
        with pytest.raises(ValueError, match=f"S = {S}"):
            timesteps(1000, S, spacing)
        return
    times = timesteps(1000, S, spacing)
    assert times.shape == (S + 1,)
    assert (times.diff() < 0).all()
    assert times[-1] == 0
    assert 1 <= times[0] <= 1000
    if spacing in ("trailing", "linspace"):
        assert times[0] == 1000


def test_the_full_chain_is_every_step():
    for spacing in ("trailing", "leading", "linspace"):
        assert timesteps(20, 20, spacing).tolist() == list(range(20, -1, -1))


def test_the_quadratic_grid_moves_ties_up():
    times = timesteps(1000, 50, "quadratic").flip(0)
    raw = 1 + (torch.arange(50, dtype=F64) ** 2 * 800 / 49**2).floor().long()
    assert (times[1:] >= raw).all()
    assert times[-1] == 801
    assert times[:5].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "quadratic"])
def test_short_chains_have_every_grid(spacing):
    for T in range(2, 13):
        for S in range(2, T + 1):
            times = timesteps(T, S, spacing)
            assert (times.diff() < 0).all()
            assert times[0] <= T
            assert times[-2] >= 1
            assert times[-1] == 0


@pytest.mark.parametrize(
    ("T", "S", "error", "message"),
    [
        (10, 0, ValueError, "S = 0 must be at least 1"),
        (10, -1, ValueError, "S = -1 must be at least 1"),
        (0, 1, ValueError, "T = 0 must be at least 1"),
        (10, 11, ValueError, "S = 11 steps do not fit into a chain of T = 10"),
        (10, 2.5, TypeError, r"S = 2\.5 is float"),
        (10.0, 2, TypeError, r"T = 10\.0 is float"),
    ],
)
def test_impossible_grids(T, S, error, message):
    with pytest.raises(error, match=message):
        timesteps(T, S)


@pytest.mark.parametrize(
    ("spacing", "least"), [("trailing", 1), ("leading", 1), ("linspace", 2), ("quadratic", 2)]
)
def test_the_shortest_grid(spacing, least):
    assert len(timesteps(10, least, spacing)) == least + 1
    with pytest.raises(ValueError, match=f"S = {least - 1} must be at least {least}"):
        timesteps(10, least - 1, spacing)


def test_unknown_spacing():
    with pytest.raises(ValueError, match="spacing = 'linear' is unknown"):
        timesteps(10, 5, "linear")


@pytest.mark.parametrize("against", [50, 100, 250])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_grids_are_diffusers_shifted_by_one(spacing, against):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(timestep_spacing=spacing)
    theirs.set_timesteps(against)
    assert timesteps(1000, against, spacing)[:-1].tolist() == (theirs.timesteps + 1).tolist()


def test_karras_grid_is_even_in_the_root_of_sigma(schedule):
    times = karras_times(schedule, 10, rho=3.0)
    assert times.dtype == F64
    assert times.shape == (11,)
    assert times[[0, -2, -1]].tolist() == [1000, 1, 0]
    assert (times.diff() < 0).all()
    a = schedule.alpha_bar_at(times[:-1])
    roots = ((1 - a) / a).sqrt() ** (1 / 3)
    assert_close(roots.diff(), roots.diff().mean().expand(9), rtol=0, atol=1e-9)
    assert karras_times(schedule, 2).tolist() == [1000, 1, 0]
    assert_close(karras_times(schedule, 10), karras_times(schedule, 10, rho=7.0), rtol=0, atol=0)
    assert karras_times(schedule, 10, rho=1.0)[0] == 1000


@pytest.mark.parametrize("rho", [0.5, -1.0, math.nan])
def test_impossible_karras_grids(linear, rho):
    with pytest.raises(ValueError, match=f"rho = {rho} must be at least 1"):
        karras_times(linear, 10, rho)
    with pytest.raises(ValueError, match="S = 1 must be at least 2"):
        karras_times(linear, 1)
    with pytest.raises(TypeError, match=r"S = 2\.5 is float"):
        karras_times(linear, 2.5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_are_no_images(linear, dtype):
    """Rates cast to whole numbers are 0: q_sample(pixels, ...) would be 0 everywhere."""
    images = torch.ones(2, 1, 4, 4).to(dtype)
    with pytest.raises(TypeError, match=rf"{dtype}.*from_uint8"):
        linear.at(5, images)


# --- both ends of a step, and schedules by name ---


def test_both_ends_of_a_step_are_looked_up(linear):
    t, s = torch.tensor([1000, 700, 1]), torch.tensor([500, 0, 0])
    at_t, at_s = linear.alpha_bars(t, s)
    assert_close(at_t, linear.alpha_bar[t], rtol=0, atol=0)
    assert_close(at_s, linear.alpha_bar[s], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("t", "s", "message"),
    [
        (1001, 5, "t = 1001 is outside its domain 0 <= t <= 1000"),
        (-1, 0, "t = -1 is outside its domain"),
        (5, -1, "s = -1 is outside its domain 0 <= s <= 1000"),
        (5, 1001, "s = 1001 is outside its domain"),
        (0, 0, "s = 0 is not before t = 0"),
        (5, 5, "s = 5 is not before t = 5"),
        (5, 6, "s = 6 is not before t = 5"),
    ],
)
def test_ends_that_make_no_step_are_refused(linear, t, s, message):
    with pytest.raises(ValueError, match=message):
        linear.alpha_bars(t, s)


def test_a_schedule_by_name_is_the_usual_one():
    for name, betas in (
        ("linear", linear_betas),
        ("scaled_linear", scaled_linear_betas),
        ("cosine", cosine_betas),
    ):
        whole = NoiseSchedule.from_betas(betas(1000)).alpha_bar
        assert_close(make_schedule(name).alpha_bar, whole, rtol=0, atol=0)
        assert make_schedule(name, 50).T == 50
    with pytest.raises(
        ValueError, match=r"schedule = 'square' is unknown; choose one of \('linear"
    ):
        make_schedule("square")
