"""Many images at once: each has a generator of its own, and what cannot be sampled is refused."""

import itertools

import pytest
import torch

from diffusion_core.ddim import ddim_sample
from diffusion_core.ddpm import ddpm_sample
from diffusion_core.guidance import classifier_free_guidance, condition
from diffusion_core.prediction import clip_x0
from diffusion_core.pretrained import check_sampling, generate
from diffusion_core.sampling import last
from diffusion_core.schedules import timesteps
from tests.conftest import tiny


def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in():
    model, y = tiny(), torch.tensor([0, 1, 2, 0, 1])
    together = generate(model, y, 5, 4, 0, "cpu")
    apart = generate(model, y, 5, 4, 0, "cpu", batch_size=2)
    assert together.shape == (5, 1, 8, 8)
    assert (together - apart).abs().max() < 1e-5
    assert not torch.equal(together, generate(model, y, 5, 4, 1, "cpu"))
    assert not torch.equal(together[0], together[3])
    with pytest.raises(ValueError, match="5 labels for n = 4"):
        generate(model, y, 4, 4, 0, "cpu")


def test_no_two_seeds_share_an_image():
    """The seeds of an evaluation would be no repetitions: with one label, images that started from
    the same noise are the same."""
    model = tiny()
    sets = [
        generate(model, torch.zeros(4, dtype=torch.long), 4, 2, seed, "cpu") for seed in range(4)
    ]
    for a, b in itertools.combinations(torch.cat(sets), 2):
        assert (a - b).abs().max() > 0.1


def test_a_seed_has_a_million_images_and_no_more():
    with pytest.raises(ValueError, match=r"n = 1000001, seed = 0: .* has 1,000,000 images"):
        generate(tiny(), None, 1_000_001, 2, 0, "cpu")


@pytest.mark.parametrize("scale", [None, 0.0, 1.0, 2.5])
@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", None), ("ddim", None), ("ddim", 0.7)])
def test_the_sampler_is_the_one_that_was_asked_for(sampler, eta, scale):
    model, y = tiny(), torch.tensor([2, 0])
    found = generate(model, y, 2, 5, 3, "cpu", sampler=sampler, eta=eta, guidance_scale=scale)
    generators = [torch.Generator().manual_seed(3_000_000 + i) for i in range(2)]
    x_T = torch.stack([torch.randn(1, 8, 8, generator=g) for g in generators])
    guided = (
        condition(model.net, y)
        if scale is None
        else classifier_free_guidance(model.net, y, 3, scale)
    )
    eps_model, times = clip_x0(guided, model.schedule), timesteps(1000, 5)
    if sampler == "ddpm":
        steps = ddpm_sample(eps_model, x_T, times, model.schedule, generator=generators)
    else:
        steps = ddim_sample(
            eps_model, x_T, times, model.schedule, eta=eta or 0.0, generator=generators
        )
    assert torch.equal(found, last(steps))


@pytest.mark.parametrize(
    "y",
    [
        torch.tensor([0, 1]),
        torch.tensor([0, 1, 2, 0]),
        torch.zeros(3),
        torch.zeros(3, 1, dtype=torch.long),
    ],
)
def test_there_is_one_label_an_image(y):
    with pytest.raises(
        ValueError, match=r"labels for n = 3 images: y has shape .* expected \(3,\) and int64"
    ):
        generate(tiny(), y, 3, 2, 0, "cpu")


@pytest.mark.parametrize("y", [torch.tensor([0, 4]), torch.tensor([-1, 0])])
def test_a_label_that_the_net_does_not_know_is_refused(y):
    with pytest.raises(ValueError, match="out of range"):
        generate(tiny(), y, 2, 2, 0, "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1001}, "S = 1001 steps do not fit"),
        ({"sampler": "plms"}, "sampler = 'plms' is unknown"),
        ({"eta": 0.0}, "eta = 0.0: the sampler 'ddpm' has no eta"),
        ({"sampler": "ddim", "eta": -1.0}, "eta = -1.0 must be"),
        ({"sampler": "ddim", "eta": float("nan")}, "eta = nan must be"),
        ({"sampler": "ddim", "eta": 40.0}, "eta = 40 is too large"),
        ({"guidance_scale": float("inf")}, "guidance_scale = inf must be"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_it_is(options, message):
    asked = {"steps": 4} | options
    with pytest.raises(ValueError, match=message):
        check_sampling(tiny(), **asked)
    with pytest.raises(ValueError, match=message):
        generate(tiny(), torch.tensor([1]), 1, asked.pop("steps"), 0, "cpu", **asked)


def test_guidance_needs_labels():
    with pytest.raises(ValueError, match="trained without labels"):
        check_sampling(tiny(classes=None), 4, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"guidance_scale = 2\.0 needs labels"):
        generate(tiny(), None, 1, 4, 0, "cpu", guidance_scale=2.0)
    with pytest.raises(ValueError, match="labels were given"):
        generate(tiny(classes=None), torch.tensor([1]), 1, 4, 0, "cpu")
