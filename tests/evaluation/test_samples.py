"""What `evaluate` measures of one seed."""

import itertools

import torch

from diffusion_core.data import Images
from diffusion_core.evaluation import samples


def test_the_seeds_are_compared_with_other_test_images():
    images = Images(torch.arange(2000, dtype=torch.uint8).reshape(-1, 1, 1, 1), torch.arange(2000))
    for n in (samples.NEAREST, samples.BOUND):
        parts = [set(samples._part(images, seed, n).labels.tolist()) for seed in range(5)]
        assert all(len(part) == n for part in parts)
        assert all(a.isdisjoint(b) for a, b in itertools.combinations(parts, 2))
    everything = samples._part(images, 9, 205)
    assert everything.labels.tolist() == [i % 2000 for i in range(1845, 2050)], (
        "it starts again at the end"
    )
