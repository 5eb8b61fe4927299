"""Draw the landing page's animation with the shipped network: `python -m tools.hero` (`make hero`).

Thirty-two images, labels 0 to 9 in turn, from the random starts of the seeds 0 to 31, along a chain of 100 steps.
book/_data/hero.json says which weights drew it; a test compares that with the weights that are shipped.
"""

import hashlib
import json

import torch

from diffusion_core.ddpm import ddpm_sample
from diffusion_core.plotting import animate
from diffusion_core.prediction import clip_x0
from diffusion_core.pretrained import load_pretrained
from diffusion_core.schedules import timesteps
from tools import layout

FILE = layout.BOOK / "_static" / "hero.gif"
RECORD = layout.BOOK / "_data" / "hero.json"


def frames(net, schedule, count=32, steps=100):
    """The states on the way, every fifth one at first, then every second one: [(count, 1, 28, 28), ...]."""
    y = torch.arange(count) % 10
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    x_T = torch.stack([torch.randn(1, 28, 28, generator=g) for g in generators])
    eps_model = clip_x0(lambda x, t: net(x, t, y), schedule)
    walk = ddpm_sample(eps_model, x_T, timesteps(schedule.T, steps), schedule, generator=generators)
    states = [x_T, *(step.x for step in walk)]
    return states[: steps // 2 : 5] + states[steps // 2 : -1 : 2] + states[-1:]


def main():
    net, schedule, card = load_pretrained("mnist")
    picture = animate(frames(net, schedule), columns=8, scale=1, milliseconds=110, hold=3000).data
    FILE.write_bytes(picture)
    text = json.dumps(record(card["sha256"], picture), indent=1) + "\n"
    RECORD.write_text(text, encoding="utf8", newline="\n")
    print(f"{FILE.relative_to(layout.ROOT)}: {len(picture) / 1e6:.1f} MB")


def record(weights_sha256, picture):
    """What is kept beside the picture: the weights that drew it, and its own hash."""
    return {
        "weights": "mnist",
        "weights_sha256": weights_sha256,
        "picture_sha256": hashlib.sha256(picture).hexdigest(),
    }


if __name__ == "__main__":
    main()
