"""Noise, data and velocity, one prediction in three forms; clipping."""

import pytest
import torch
from torch.testing import assert_close

from diffusion_core.ddpm import q_sample
from diffusion_core.prediction import clip_x0, eps_from_v, predict_eps, predict_v, predict_x0
from tests.conftest import normal

F64 = torch.float64


def test_x0_eps_and_v_are_one_prediction(schedule):
    x_0, eps, t = normal(3, 4), normal(3, 4, seed=1), torch.tensor([1, 300, 1000])
    x_t = q_sample(x_0, t, eps, schedule)
    v = predict_v(x_0, eps, t, schedule)
    signal, noise = schedule.at(t, x_0)
    assert_close(v, signal * eps - noise * x_0, rtol=0, atol=1e-14)
    assert_close(eps_from_v(v, x_t, t, schedule), eps, rtol=0, atol=1e-12)
    assert_close(predict_eps(x_0, x_t, t, schedule), eps, rtol=0, atol=1e-11)
    assert_close(predict_x0(eps, x_t, t, schedule)[:2], x_0[:2], rtol=0, atol=1e-11)
    assert_close(signal * x_t - noise * v, x_0, rtol=0, atol=1e-12)


def test_a_result_has_the_dtype_of_the_state_whatever_comes_beside_it(linear):
    """A network under autocast answers in bfloat16, an exact model in float64: the state stays
    what it is."""
    t = torch.tensor([5, 6])
    for mine in (torch.bfloat16, torch.float32, torch.float64):
        for theirs in (torch.bfloat16, torch.float32, torch.float64):
            x, other = normal(2, 3).to(mine), normal(2, 3, seed=1).to(theirs)
            for result in (
                predict_x0(other, x, t, linear),
                predict_eps(other, x, t, linear),
                predict_v(x, other, t, linear),
                eps_from_v(other, x, t, linear),
            ):
                assert result.dtype == mine


def test_rates_have_the_precision_of_the_state(linear):
    """x_0 in bfloat16 beside a float64 x_t: nothing is rounded that was not rounded before."""
    x_0, x_t, t = normal(2, 3).bfloat16(), normal(2, 3, seed=1), torch.tensor([500, 20])
    assert_close(
        predict_eps(x_0, x_t, t, linear), predict_eps(x_0.double(), x_t, t, linear), rtol=0, atol=0
    )


@pytest.mark.parametrize("function", [predict_x0, predict_eps, predict_v, eps_from_v])
def test_shapes_must_agree(linear, function):
    with pytest.raises(ValueError, match=r"\(2, 3\).*must have the same shape"):
        function(normal(2, 3), normal(2, 4), 5, linear)


def test_eps_is_found_at_every_time_above_0(linear):
    x, eps = normal(2, 3), normal(2, 3, seed=1)
    assert_close(
        predict_eps(x, q_sample(x, 0.5, eps, linear), 0.5, linear), eps, rtol=0, atol=1e-10
    )
    with pytest.raises(ValueError, match="t = -1 is outside"):
        predict_eps(x, x, -1, linear)
    with pytest.raises(ValueError, match="t = 0"):
        predict_eps(x, x, 0, linear)


def test_clip_x0_is_the_model_where_nothing_is_clipped(linear):
    x_t, eps = 0.1 * normal(2, 3), 0.01 * normal(2, 3, seed=1)
    t = torch.tensor([5, 5])
    assert_close(clip_x0(lambda x, t: eps, linear)(x_t, t), eps, rtol=0, atol=1e-12)


def test_clip_x0_keeps_the_prediction_in_range(linear):
    x_t, t = 3 * normal(2, 3), torch.tensor([5, 900])
    clipped = clip_x0(lambda x, t: torch.zeros_like(x), linear, -0.5, 0.25)(x_t, t)
    x_0 = predict_x0(clipped, x_t, t, linear)
    raw = predict_x0(torch.zeros_like(x_t), x_t, t, linear)
    assert_close(x_0, raw.clamp(-0.5, 0.25), rtol=0, atol=1e-11)
    default = predict_x0(clip_x0(lambda x, t: torch.zeros_like(x), linear)(x_t, t), x_t, t, linear)
    assert_close(default, raw.clamp(-1, 1), rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match=r"low = 1.0 must be below high = 1.0"):
        clip_x0(lambda x, t: x, linear, 1.0, 1.0)
