"""Draw the landing page's animation with the shipped network: `python -m tools.hero` (`make hero`).

Thirty-two images, labels 0 to 9 in turn, from the first thirty-two random starts of seed 0, along a chain of 100 steps.
"""

import torch

from diffusion_core.ddpm import clip_x0, ddpm_sample
from diffusion_core.plotting import animate
from diffusion_core.pretrained import load_pretrained
from diffusion_core.schedules import timesteps
from tools import layout

FILE = layout.BOOK / "_static" / "hero.gif"


def frames(count=32, steps=100):
    """The states on the way, every fifth one at first, then every second one: [(count, 1, 28, 28), ...]."""
    net, schedule, _ = load_pretrained("mnist")
    y = torch.arange(count) % 10
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    x_T = torch.stack([torch.randn(1, 28, 28, generator=g) for g in generators])
    eps_model = clip_x0(lambda x, t: net(x, t, y), schedule)
    walk = ddpm_sample(eps_model, x_T, timesteps(schedule.T, steps), schedule, generator=generators)
    states = [x_T, *(step.x for step in walk)]
    return states[: steps // 2 : 5] + states[steps // 2 : -1 : 2] + states[-1:]


def main():
    FILE.write_bytes(animate(frames(), columns=8, scale=1, milliseconds=110, hold=3000).data)
    print(f"{FILE.relative_to(layout.ROOT)}: {FILE.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
