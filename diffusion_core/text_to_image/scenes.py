"""What the pocket Stable Diffusion is trained on, and what it never saw."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import count

from diffusion_core.data.scenes import Scene, random_scene

NEW_KIND = "cross"  # no picture with one is in the training of the text-to-image model
ONE_IN = 8


def held_out(scene: Scene) -> bool:
    """Whether a scene's combination is one of the eighth that is kept out of training: of one
    thing, its colour, kind and background, whatever its size; of two things, their colours and
    kinds, whatever their relation, sizes and background."""
    things = sorted(f"{thing.colour} {thing.kind}" for thing in scene.things)
    named = [*things, scene.background] if len(things) == 1 else things
    return zlib.crc32(" / ".join(named).encode()) % ONE_IN == 0


def is_new(scene: Scene) -> bool:
    """Whether a scene shows the kind that no picture of the training shows."""
    return any(thing.kind == NEW_KIND for thing in scene.things)


def scenes_of(
    seed: int, *, things: int | None = None, held: bool | None = False
) -> Iterator[Scene]:
    """The scenes of a seed, without end and without the new kind: those that the training may
    show (held = False), those held out (True), or both (None); with one thing, two, or either."""
    for i in count():
        scene = random_scene(seed, i)
        wanted = things is None or len(scene.things) == things
        if wanted and not is_new(scene) and held in (None, held_out(scene)):
            yield scene
