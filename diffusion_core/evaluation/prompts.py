"""Does a painted image show what its prompt says? Background, things, their colours and kinds,
sizes and relation, read from the pixels and compared with the scene that the prompt describes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
from torch import Tensor

from diffusion_core._validate import check_whole
from diffusion_core.data.scenes import (
    KINDS,
    LEAST_SIZE,
    PALETTE,
    Scene,
    Thing,
    signed_distance,
)

LEAST_IOU = 0.8  # of a thing and the best drawing of its kind
LARGE = 0.2  # the least radius of a large thing, of the image's side
_LEAST_RADIUS = 0.115  # of a drawing: a smaller blob is a bad star rather than a good circle
_LEAST_AREA = 6 / 32**2  # of a thing, of the image; the smallest star covers 25 / 32^2
_PURE = 45.0  # from 0..255: colours nearer than this to a blend of two are that blend
_NAMES = tuple(PALETTE)
_COLOURS = np.array(list(PALETTE.values()), dtype=float)


class Seen(NamedTuple):
    """What an image shows: its background, the things on it from the largest area down, and
    how well a drawing of each covers it, from 0 to 1."""

    background: str
    things: tuple[Thing, ...]
    ious: tuple[float, ...]


class Verdict(NamedTuple):
    """Which parts of a prompt an image got right. What the prompt does not name is right;
    `right`: all of them; `iou`: of the thing that is drawn worst, 0 if one is missing."""

    right: bool
    background: bool
    number: bool
    colours: bool
    kinds: bool
    sizes: bool
    relation: bool
    iou: float


class Share(NamedTuple):
    """The share of n images, and its standard error, sqrt(p (1 - p) / n)."""

    share: float
    error: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} ± {100 * self.error:.1f} % (n = {self.n})"


def prompt_accuracy(
    images: Tensor, scenes: Sequence[Scene], iou: float = LEAST_IOU
) -> dict[str, Share]:
    """How many images are right, and for every part of a prompt, how many of those whose
    prompt names it.

    Shapes: images (N, 3, H, H) in [-1, 1]; N scenes.
    Returns: shares of right, background, number (of things), colours and kinds, and where a
        prompt names one, sizes and relation.
    Raises: ValueError for no images, another number of scenes, or as judge_scene.
    """
    if len(images) != len(scenes) or not len(images):
        raise ValueError(f"{len(images)} images and {len(scenes)} scenes: expected one each")
    if images.is_floating_point() and images.min() >= 0:  # of the colours, only white has no less
        raise ValueError("images without a value below 0: expected [-1, 1], as 2 * x - 1 of [0, 1]")
    verdicts = [judge_scene(image, scene, iou) for image, scene in zip(images, scenes)]
    named = {
        "sizes": [any(t.size for t in scene.things) for scene in scenes],
        "relation": [bool(scene.relation) for scene in scenes],
    }
    shares = {}
    for part in Verdict._fields[:-1]:
        counted = named.get(part, [True] * len(scenes))
        hits = [getattr(verdict, part) for verdict, yes in zip(verdicts, counted) if yes]
        if hits:
            p = sum(hits) / len(hits)
            shares[part] = Share(p, math.sqrt(p * (1 - p) / len(hits)), len(hits))
    return shares


def judge_scene(pixels: Tensor, scene: Scene, iou: float = LEAST_IOU) -> Verdict:
    """Whether an image shows the scene of its prompt: places and exact radii are free, the
    rest is as the caption says, and nothing else is there.

    Named and seen things are paired so that most colours agree, then kinds: a red circle
    and a blue square are not a blue circle and a red square. A kind is right if a drawing
    of it covers the thing better than one of any other kind, with at least `iou`; "above"
    is right if the centres lie further apart upwards than sidewards.
    Shapes: pixels (3, H, H) in [-1, 1].
    Raises: as read_scene; ValueError for a scene that has no caption, or names a colour or
        a kind that there is not.
    """
    _check_scene(scene)
    seen = read_scene(pixels)
    n, found = len(scene.things), list(zip(seen.things, seen.ious))
    options = permutations(found + [(None, 0.0)] * max(0, n - len(found)), n)
    pairing = max(options, key=lambda option: _agreeing(scene.things, option))
    pairs = [(named, thing) for named, (thing, _) in zip(scene.things, pairing)]
    worst = min(covered for _, covered in pairing)
    colours = all(t is not None and t.colour == named.colour for named, t in pairs)
    kinds = worst >= iou and all(t is not None and t.kind == named.kind for named, t in pairs)
    sizes = all(
        t is not None and named.size in ("", "large" if t.radius >= LARGE else "small")
        for named, t in pairs
    )
    relation = not scene.relation or _holds(scene.relation, *(thing for _, thing in pairs))
    parts = (seen.background == scene.background, len(found) == n, colours, kinds, sizes, relation)
    return Verdict(all(parts), *parts, worst)


def _check_scene(scene: Scene) -> None:
    scene.caption  # noqa: B018  it raises for things and a relation that do not fit
    for colour in (scene.background, *(t.colour for t in scene.things)):
        if colour not in PALETTE:
            raise ValueError(f"colour = {colour!r}: choose from {_NAMES}")
    for thing in scene.things:
        signed_distance(thing.kind)


def _agreeing(
    named: Sequence[Thing], option: Sequence[tuple[Thing | None, float]]
) -> tuple[int, int, float]:
    """How many colours, then kinds, agree, then how well the things are drawn."""
    pairs = [(name, thing) for name, (thing, _) in zip(named, option) if thing is not None]
    return (
        sum(thing.colour == name.colour for name, thing in pairs),
        sum(thing.kind == name.kind for name, thing in pairs),
        sum(covered for _, covered in option),
    )


def _holds(relation: str, first: Thing | None, second: Thing | None) -> bool:
    if first is None or second is None:
        return False
    right, down = first.x - second.x, first.y - second.y
    along, across = {
        "above": (-down, right),
        "below": (down, right),
        "to the left of": (-right, down),
        "to the right of": (right, down),
    }[relation]
    return bool(along > abs(across))


def read_scene(pixels: Tensor) -> Seen:
    """What an image shows, read from its pixels alone.

    The background is the most frequent colour of the image's edge. The pixels of other
    colours that touch each other are a thing, or more if no blend of one colour and the
    background explains them: the orange edge of a yellow thing on red is none. Its kind,
    centre and radius are those of the drawing that covers it best; what covers less than
    6 of 32 x 32 pixels is no thing.
    Shapes: pixels (3, H, H) in [-1, 1], H at least 16.
    Raises: ValueError for another shape, whole numbers, or values that are not finite.
    """
    if pixels.ndim != 3 or tuple(pixels.shape) != (3, side := pixels.shape[-1], side):
        raise ValueError(f"pixels {tuple(pixels.shape)}: expected (3, H, H)")
    check_whole("H", side, LEAST_SIZE)
    if not pixels.is_floating_point():
        raise ValueError(f"pixels of {pixels.dtype}: expected [-1, 1], see from_uint8")
    if not pixels.isfinite().all():
        raise ValueError("pixels hold values that are not finite")
    image = (pixels.detach().double().cpu().clamp(-1, 1).numpy().transpose(1, 2, 0) + 1) * 127.5
    nearest = ((image[:, :, None] - _COLOURS) ** 2).sum(3).argmin(2)
    edge = np.concatenate([nearest[0], nearest[-1], nearest[1:-1, 0], nearest[1:-1, -1]])
    ground = int(np.bincount(edge, minlength=len(_NAMES)).argmax())
    found = []
    for part in _components(nearest != ground):
        found += _things(image, part, ground)
    found.sort(key=lambda one: -one[0])
    things, ious = [thing for _, thing, _ in found], [covered for _, _, covered in found]
    return Seen(_NAMES[ground], tuple(things), tuple(ious))


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """The parts of a mask that hang together, corners included: every pixel takes the least
    number of its neighbourhood, until nothing changes."""
    none = mask.size
    numbers = np.where(mask, np.arange(none).reshape(mask.shape), none)
    while True:
        least = np.where(mask, _around(numbers, np.minimum, none), none)
        if (least == numbers).all():
            break
        numbers = least
    return [numbers == number for number in np.unique(numbers[mask])]


def _around(values: np.ndarray, take: np.ufunc, beyond: float) -> np.ndarray:
    """`take` of the 3 x 3 neighbourhood of each pixel."""
    wide = np.pad(values, 1, constant_values=beyond)
    rows = take(take(wide[:-2], wide[1:-1]), wide[2:])
    return take(take(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def _things(image: np.ndarray, part: np.ndarray, ground: int) -> list[tuple[float, Thing, float]]:
    """(area, thing, iou) of each thing in a part of the image; mostly one."""
    least = _LEAST_AREA * part.size
    ways = _COLOURS - _COLOURS[ground]
    ways[ground] = 1e9  # what is not the background has another colour
    covers = ((image - _COLOURS[ground]) @ ways.T / (ways**2).sum(1)).clip(0, 1)
    blends = _COLOURS[ground] + covers[..., None] * ways
    errors = np.sqrt(((image[:, :, None] - blends) ** 2).sum(3))  # (H, H, colours)
    pieces, rest = [], part
    while rest.sum() >= least:
        costs = np.minimum(errors[rest], _PURE) ** 2
        costs[:, ground] = _PURE**2
        colour = int(costs.sum(0).argmin())
        mine = rest & (errors[:, :, colour] < _PURE)
        if not mine.any():
            break
        pieces.append((colour, mine))
        rest = rest & ~mine
    found = []
    for i, (colour, mine) in enumerate(pieces):
        others = np.any([m for j, (_, m) in enumerate(pieces) if j != i], axis=0)
        near = _around(mine, np.maximum, False) & ~others
        cover = np.where(near, _sharp(covers[:, :, colour]), 0.0)
        if cover.sum() >= least:
            kind, x, y, radius, covered = _best_drawing(cover)
            size = "large" if radius >= LARGE else "small"
            thing = Thing(size, _NAMES[colour], kind, x, y, radius)
            found.append((float(cover.sum()), thing, covered))
    return found


def _sharp(cover: np.ndarray) -> np.ndarray:
    """Edges half as wide: a little blur costs less, and faint noise nothing."""
    return np.clip(0.5 + 2 * (cover - 0.5), 0, 1)


def _best_drawing(cover: np.ndarray) -> tuple[str, float, float, float, float]:
    """(kind, x, y, radius, iou) of the drawing that covers a thing best: of each kind, the one
    of the same area and centroid, moved and resized in ever smaller steps."""
    side, area = len(cover), cover.sum()
    smallest = _LEAST_RADIUS * side
    axis = np.arange(side) + 0.5
    x, y = cover.sum(0) @ axis / area, cover.sum(1) @ axis / area
    best: dict[str, tuple[float, np.ndarray]] = {}
    for kind in KINDS:
        unit_area, low = _area_and_centroid(kind)
        radius = max(smallest, math.sqrt(area / unit_area))
        start = np.array([[x, y - low * radius, radius]])
        best[kind] = (float(_ious(cover, kind, start)[0]), start[0])
    promising = max(iou for iou, _ in best.values()) - 0.15
    for kind, (iou, at) in best.items():
        if iou < promising:
            continue
        for step in (0.6, 0.3, 0.15):  # pixels
            options = at + step * _STEPS
            options[:, 2] = options[:, 2].clip(smallest)
            ious = _ious(cover, kind, options)
            i = int(ious.argmax())
            iou, at = float(ious[i]), options[i]
        best[kind] = (iou, at)
    kind = max(best, key=lambda name: best[name][0])
    iou, (x, y, radius) = best[kind]
    return kind, float(x / side), float(y / side), float(radius / side), iou


_STEPS = np.array(list(product((0, -1, 1), repeat=3)), dtype=float)


def _ious(cover: np.ndarray, kind: str, places: np.ndarray) -> np.ndarray:
    """What a thing and drawings of a kind share, of what they cover together; pixels count
    with the share that is covered. Shapes: places (K, 3): x, y, radius in pixels; result (K,)."""
    lowest, highest = places[:, :2].min(0), places[:, :2].max(0)
    reach = places[:, 2].max() + 1
    rows, columns = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
    left, right = _window(columns, lowest[0] - reach, highest[0] + reach, len(cover))
    top, bottom = _window(rows, lowest[1] - reach, highest[1] + reach, len(cover))
    x, y, radius = (column[:, None, None] for column in places.T)
    across = (np.arange(left, right) + 0.5 - x) / radius
    down = (np.arange(top, bottom)[:, None] + 0.5 - y) / radius
    drawn = _sharp(0.5 - radius * signed_distance(kind)(across, down))
    here = cover[top:bottom, left:right]
    both = np.minimum(drawn, here).sum((1, 2))
    return both / (drawn.sum((1, 2)) + here.sum() - both)


def _window(used: np.ndarray, low: float, high: float, side: int) -> tuple[int, int]:
    return max(0, int(min(used[0], low))), min(side, math.ceil(max(used[-1] + 1, high)))


@lru_cache
def _area_and_centroid(kind: str) -> tuple[float, float]:
    """Of a shape of radius 1, and how far the centroid lies below the centre."""
    axis = np.linspace(-1.2, 1.2, 481)
    inside = signed_distance(kind)(axis[None, :], axis[:, None]) < 0
    area = inside.sum() * (axis[1] - axis[0]) ** 2
    return float(area), float((inside.sum(1) @ axis) / inside.sum())
