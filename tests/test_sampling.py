"""The loop that every sampler walks, and the noise that it draws."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from diffusion_core.ddpm import ddpm_sample
from diffusion_core.prediction import predict_x0
from diffusion_core.sampling import Step, draw, last, walk
from diffusion_core.schedules import timesteps
from tests.conftest import normal, seeded

F64 = torch.float64


# --- the loop ---


def _step(eps, x, t, s, z):
    """A step that shows all that it was given."""
    return x + 2 * eps + 1e-3 * t + 1e-5 * s + 3 * z


@pytest.mark.parametrize("noisy", [True, False])
def test_the_loop_gives_a_step_what_is_its(linear, mixture, noisy):
    x, times, model = normal(5, 2), torch.tensor([1000, 700, 30, 1, 0]), mixture.eps_model(linear)
    theirs, generator = seeded(3), seeded(3)
    steps = walk(_step, model, x, times, linear, generator=theirs, noisy=noisy)
    for step, (t, s) in zip(list(steps), itertools.pairwise(times), strict=True):
        eps = model(x, t)
        assert step.t == s
        assert_close(step.x_0, predict_x0(eps, x, t, linear), rtol=0, atol=0)
        z = draw(x, generator) if noisy and s > 0 else torch.zeros_like(x)
        x = _step(eps, x, t, s, z)
        assert_close(step.x, x, rtol=0, atol=0)
    assert torch.equal(generator.get_state(), theirs.get_state())  # nothing is drawn for s = 0


def test_the_model_sees_the_original_times(linear):
    seen = []

    def model(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    last(ddpm_sample(model, normal(3, 2), timesteps(1000, 4), linear))
    assert [t.tolist() for t in seen] == [[1000] * 3, [750] * 3, [500] * 3, [250] * 3]


def test_the_last_step_adds_no_noise(linear, mixture):
    x = normal(4, 2)
    times = torch.tensor([1, 0])
    model = mixture.eps_model(linear)
    runs = [last(ddpm_sample(model, x, times, linear, generator=seeded(i))) for i in (0, 1)]
    assert_close(runs[0], runs[1], rtol=0, atol=0)


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
    together = last(ddpm_sample(model, x_T, times, linear, generator=[seeded(i) for i in range(3)]))
    for i in range(3):
        alone = last(ddpm_sample(model, x_T[i : i + 1], times, linear, generator=[seeded(i)]))
        assert_close(together[i : i + 1], alone, rtol=0, atol=0)


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
    with pytest.raises(ValueError, match="3 generators for a batch of 2"):
        ddpm_sample(
            lambda x, t: x,
            normal(2, 2),
            timesteps(1000, 5),
            linear,
            generator=[seeded(i) for i in range(3)],
        )
    with pytest.raises(ValueError, match="made no step"):
        last(iter([]))


def test_the_step_tuple():
    assert Step._fields == ("t", "x", "x_0")


# --- the noise ---


@pytest.mark.parametrize(
    ("dtype", "drawn_in"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
    ],
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
