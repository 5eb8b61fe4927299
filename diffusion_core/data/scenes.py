"""Scenes of coloured things, each with a caption that is true by construction, and how
they are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_core._validate import check_whole
from diffusion_core.data.images import from_uint8

PALETTE = {
    "red": (220, 30, 40),
    "orange": (255, 145, 20),
    "yellow": (255, 225, 50),
    "green": (40, 170, 80),
    "blue": (30, 80, 215),
    "purple": (165, 85, 205),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
KINDS = ("circle", "square", "triangle", "star", "cross", "ring")
RELATIONS = ("above", "below", "to the left of", "to the right of")
_RADII = {"small": (0.13, 0.16), "large": (0.24, 0.30), "": (0.15, 0.19)}  # of the image's side
_MARGIN = 0.032  # from a thing to the edge of the image: a pixel of 32
_GAP = 0.064  # between two things
LEAST_SIZE = 16  # pixels; in fewer, a small ring has no hole


class Thing(NamedTuple):
    """What a scene shows: how the caption calls it, and where it is. The centre, from
    the upper left corner, and the radius are parts of the image's side; `size` is empty
    where the caption does not name it."""

    size: str
    colour: str
    kind: str
    x: float
    y: float
    radius: float


class Scene(NamedTuple):
    """All that decides one picture: a thing, or two and the relation of the first to
    the second, on a background."""

    things: tuple[Thing, ...]
    relation: str
    background: str

    @property
    def caption(self) -> str:
        """The scene in words: "a red circle above a blue square on a white background".

        Raises: ValueError unless it holds one thing and no relation, or two and one of
            RELATIONS.
        """
        if (len(self.things), self.relation) not in {(1, ""), *((2, r) for r in RELATIONS)}:
            raise ValueError(
                f"{len(self.things)} things, relation = {self.relation!r}: a caption needs one "
                f"thing and the relation '', or two and one of {RELATIONS}"
            )
        things = [_with_article(f"{t.size} {t.colour} {t.kind}") for t in self.things]
        ground = _with_article(f"{self.background} background")
        return f" {self.relation} ".join(things) + f" on {ground}"


def draw_scene(scene: Scene, size: int = 32) -> Tensor:
    """One scene as an image, with smooth edges; later things lie on top.

    Equation: the share of a pixel that a thing covers, from the signed distance d of
        the pixel's centre to the thing's outline, in pixels, negative inside:

            cover = min(1, max(0, 1/2 - d))
            image <- image + cover (colour - image)
    Shapes: result (3, size, size).
    Returns: uint8.
    Raises: ValueError for a colour or kind that is not in PALETTE or KINDS, a radius of
        0 or less, a radius or centre that is not finite, or a size less than 16;
        TypeError unless size is int.
    """
    check_whole("size", size, LEAST_SIZE)
    centres = (np.arange(size) + 0.5) / size
    image = np.ones((3, size, size)) * _rgb(scene.background)
    for thing in scene.things:
        if not 0 < thing.radius < math.inf:
            raise ValueError(
                f"radius = {thing.radius} of the {thing.kind} must be finite and greater than 0"
            )
        if not (math.isfinite(thing.x) and math.isfinite(thing.y)):
            raise ValueError(f"centre = {thing.x, thing.y} of the {thing.kind} must be finite")
        x, y = (centres - thing.x) / thing.radius, (centres - thing.y) / thing.radius
        d = size * thing.radius * signed_distance(thing.kind)(x[None, :], y[:, None])
        image += np.clip(0.5 - d, 0, 1) * (_rgb(thing.colour) - image)
    return torch.from_numpy(np.rint(image).astype(np.uint8))


def random_scene(seed: int, i: int) -> Scene:
    """Scene i of a seed: one thing, small or large, or two of middle size, of which each is
    small in a quarter of the cases; one or two with even chances. Its random numbers are
    a stream of their own, and its colours differ.

    Raises: TypeError unless seed and i are int; ValueError if one is negative.
    """
    check_whole("seed", seed, 0)
    check_whole("i", i, 0)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,)))
    background, *colours = sorted(PALETTE, key=lambda _: rng.random())
    if rng.random() < 0.5:
        return Scene((_alone(colours[0], rng),), "", background)
    relation = _pick(RELATIONS, rng)
    things = _pair(colours, relation in ("above", "below"), rng)
    if relation in ("below", "to the right of"):
        things = things[::-1]
    return Scene(things, relation, background)


def _alone(colour: str, rng: np.random.Generator) -> Thing:
    """A small or a large thing, anywhere."""
    size, kind = _pick(("small", "large"), rng), _pick(KINDS, rng)
    radius = _between(*_RADII[size], rng)
    low, high = _MARGIN + radius, 1 - _MARGIN - radius
    return Thing(size, colour, kind, _between(low, high, rng), _between(low, high, rng), radius)


def _pair(colours: list[str], upright: bool, rng: np.random.Generator) -> tuple[Thing, ...]:
    """Two things, the upper one first, or the left one. They lie nearly in line, so that
    no other relation holds."""
    sizes = (_pick(("small", "", "", ""), rng), _pick(("small", "", "", ""), rng))
    kinds = (_pick(KINDS, rng), _pick(KINDS, rng))
    r_1, r_2 = (_between(*_RADII[size], rng) for size in sizes)
    apart = r_1 + _GAP + r_2
    first = _between(_MARGIN + r_1, 1 - _MARGIN - r_2 - apart, rng)
    along = (first, _between(first + apart, 1 - _MARGIN - r_2, rng))
    line = _between(0.28, 0.72, rng)
    across = (line + _between(-0.05, 0.05, rng), line + _between(-0.05, 0.05, rng))
    xs, ys = (across, along) if upright else (along, across)
    return tuple(Thing(*one) for one in zip(sizes, colours, kinds, xs, ys, (r_1, r_2)))


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    return low + (high - low) * rng.random()


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(len(options) * rng.random())]


def signed_distance(kind: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The signed distance to the outline of a shape of radius 1 around the origin, y
    pointing down; mitred at corners."""
    distances = {
        "circle": lambda x, y: np.hypot(x, y) - 1,
        "square": lambda x, y: np.maximum(abs(x), abs(y)) - 0.85,
        "triangle": _to_triangle,
        "star": _to_star,
        "cross": lambda x, y: np.minimum(_to_bar(x, y), _to_bar(y, x)),
        "ring": lambda x, y: abs(np.hypot(x, y) - 0.75) - 0.25,
    }
    if kind not in distances:
        raise ValueError(f"kind = {kind!r}: choose from {KINDS}")
    return distances[kind]


def _to_triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    y = y - 1 / math.sqrt(12)  # from the centre of its height to its centroid
    return np.maximum(y, (math.sqrt(3) * abs(x) - y) / 2) - 1 / math.sqrt(3)


def _to_bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x) - 1, abs(y) - 0.34)


def _to_star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    fifth, inner = 2 * math.pi / 5, 0.5
    angle = abs((np.arctan2(x, -y) + fifth / 2) % fifth - fifth / 2)  # from the nearest tip
    normal = np.array([inner * math.sin(fifth / 2), 1 - inner * math.cos(fifth / 2)])
    normal /= np.linalg.norm(normal)
    radius = np.hypot(x, y)
    return (radius * np.cos(angle) - 1) * normal[0] + radius * np.sin(angle) * normal[1]


def _rgb(colour: str) -> np.ndarray:
    if colour not in PALETTE:
        raise ValueError(f"colour = {colour!r}: choose from {tuple(PALETTE)}")
    return np.array(PALETTE[colour], dtype=float)[:, None, None]


def _with_article(words: str) -> str:
    words = words.strip()
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


class Scenes(NamedTuple):
    """A captioned data set: pixels (N, 3, H, W) uint8, one caption an image, and the
    scenes that they were drawn from, where the truth of a caption can be looked up."""

    pixels: Tensor
    captions: list[str]
    scenes: list[Scene]

    @property
    def x(self) -> Tensor:
        """The images as the models see them: (N, 3, H, W) float32 in [-1, 1]."""
        return from_uint8(self.pixels)


def shapes(n: int, seed: int = 0, size: int = 32) -> Scenes:
    """Captioned scenes, drawn by this function: "a small red circle on a blue
    background", or "a red circle above a small blue square on a white background".

    Scene i depends on (seed, i) alone: a longer set begins with the shorter one, and at
    another size the same scenes are drawn. The colours of a scene differ; half of the
    scenes hold one thing, small or large, half hold two, of middle size or small.

    Shapes: pixels (n, 3, size, size).
    Returns: Scenes: pixels uint8, captions, and what each image shows.
    Raises: TypeError unless n, seed and size are int; ValueError if n or seed is
        negative, or size is less than 16.
    """
    check_whole("n", n, 0)
    check_whole("seed", seed, 0)
    check_whole("size", size, LEAST_SIZE)
    scenes = [random_scene(seed, i) for i in range(n)]
    pixels = torch.empty(n, 3, size, size, dtype=torch.uint8)
    for i, scene in enumerate(scenes):
        pixels[i] = draw_scene(scene, size)
    return Scenes(pixels, [scene.caption for scene in scenes], scenes)
