"""The one loop of every sampler: from noise along a grid of times to data.

A sampler is a step function; the loop owns the randomness, the grid and the model.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_core._validate import Generators, check_generators, check_grid
from diffusion_core.prediction import EpsModel, predict_x0
from diffusion_core.schedules import NoiseSchedule

StepFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Step(NamedTuple):
    """What a sampler yields after each step; the last one holds the sample, at t = 0.

    Shapes: t (), x and x_0 (B, *).
    """

    t: Tensor  # the time reached
    x: Tensor  # the state there
    x_0: Tensor  # the data predicted from the state before the step


def draw(like: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal noise of like's shape, drawn where the generator lives, then
    moved.

    With one generator per image, an image's noise does not depend on the batch it is
    in.

    Equation: DDPM alg. 2, line 3, z ~ N(0, I).
    Shapes: like (B, *).
    Returns: (B, *) in like's dtype and on like's device; drawn in float32, or in
        float64 if like is.
    Raises: ValueError if the number of generators is not B.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if generator is None or isinstance(generator, torch.Generator):
        device = like.device if generator is None else generator.device
        return torch.randn(like.shape, generator=generator, device=device, dtype=dtype).to(like)
    check_generators(generator, like.shape[0])
    if len(generator) == 0:
        return torch.empty_like(like)
    drawn = [
        torch.randn(like.shape[1:], generator=g, device=g.device, dtype=dtype) for g in generator
    ]
    return torch.stack(drawn).to(like)  # moved once, not image by image


def walk(
    step: StepFunction,
    eps_model: EpsModel,
    x_T: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    *,
    generator: Generators = None,
    noisy: bool = True,
) -> Iterator[Step]:
    """Walk down a grid of times with a step function x_s = step(eps, x_t, t, s, z).

    The model is asked once a step, at the original t. A step that is not noisy, and the
    last one, which ends at s = 0, gets z = 0 and draws nothing.

    Shapes: x_T (B, *), noise at times[0]; times (S+1,), strictly decreasing to 0, as
        timesteps() makes it.
    Returns: an iterator of S Steps; nothing runs until it is iterated. x_T itself is
        not yielded.
    Raises: at the call: TypeError or ValueError for a bad grid, ValueError for a wrong
        number of generators.
    """
    times = check_grid(times, schedule.T)
    check_generators(generator, x_T.shape[0])
    return _walk(step, eps_model, x_T, times, schedule, generator, noisy)


@torch.no_grad()
def _walk(
    step: StepFunction,
    eps_model: EpsModel,
    x: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    generator: Generators,
    noisy: bool,
) -> Iterator[Step]:
    for t, s in itertools.pairwise(times):
        eps = eps_model(x, t.expand(x.shape[0]))
        x_0 = predict_x0(eps, x, t, schedule)
        z = draw(x, generator) if noisy and s > 0 else torch.zeros_like(x)
        x = step(eps, x, t, s, z)
        yield Step(s, x, x_0)


def last(steps: Iterable[Step]) -> Tensor:
    """Run a sampler to its end and keep only the final state.

    Shapes: result (B, *).
    Raises: ValueError if there was no step.
    """
    final = collections.deque(steps, maxlen=1)
    if not final:
        raise ValueError("the sampler made no step: an iterator can be used up only once")
    return final.pop().x
