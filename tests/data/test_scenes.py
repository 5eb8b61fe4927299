"""Captioned scenes: what a caption says is in the picture, and nothing else is."""

import math
import re
from collections import Counter
from itertools import cycle

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from diffusion_core.data import (
    KINDS,
    PALETTE,
    RELATIONS,
    Scene,
    Thing,
    draw_scene,
    from_uint8,
    shapes,
)

GRAMMAR = re.compile(
    r"an? (?:(?P<size>small|large) )?(?P<colour>\w+) (?P<kind>\w+)"
    r"(?: (?P<relation>above|below|to the left of|to the right of)"
    r" an? (?:(?P<size_2>small) )?(?P<colour_2>\w+) (?P<kind_2>\w+))?"
    r" on an? (?P<background>\w+) background"
)
# How a thing's distance to the other's centre must point: (rightwards, downwards).
DIRECTIONS = {
    "above": (0, -1),
    "below": (0, 1),
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
}


def one(kind, x=0.5, y=0.5, radius=0.25, colour="white", background="black"):
    return Scene((Thing("", colour, kind, x, y, radius),), "", background)


def cover_of(pixels, colour, background):
    """The share of each pixel that the thing of this colour covers, measured: how far the pixel lies
    on the way from the background's colour to the thing's; 0 far from pixels of exactly its colour,
    where other things may be."""
    ink, ground = (torch.tensor(PALETTE[c]).double() for c in (colour, background))
    way = ink - ground
    cover = ((pixels.double().permute(1, 2, 0) - ground) @ way / way.square().sum()).clamp(0, 1)
    rows, columns = (pixels.permute(1, 2, 0) == ink).all(2).nonzero(as_tuple=True)
    near = torch.zeros_like(cover)
    near[max(0, rows.min() - 2) : rows.max() + 3, max(0, columns.min() - 2) : columns.max() + 3] = 1
    return cover * near


def seen(cover):
    """(kind, x, y, extent) of a thing, in pixels, from the pixels that it covers alone."""
    rows, columns = cover.amax(1), cover.amax(0)
    height, width = rows.sum(), columns.sum()
    axis = torch.arange(len(cover)) + 0.5
    y, x = (
        (cover.sum(1) @ axis.double()) / cover.sum(),
        (cover.sum(0) @ axis.double()) / cover.sum(),
    )
    fill = cover.sum() / (height * width)
    lower = (y - (rows @ axis.double()) / height) / height  # the mass below the box's middle
    if cover[int(y), int(x)] < 0.5:
        kind = "ring"
    elif fill > 0.68:
        kind = "square" if fill > 0.9 else "circle"
    else:  # 1/6, about 1/20 and 0 of the height, were there no pixels
        kind = "triangle" if lower > 0.1 else "star" if lower > 0.005 else "cross"
    return kind, x.item(), y.item(), max(height, width).item()


@pytest.mark.parametrize("size", [32, 64])
def test_the_caption_is_true_of_the_picture(size):
    """Colours, kinds, size, relation and background, read from the pixels without the drawing code."""
    n = 400
    scenes = shapes(n, seed=7, size=size)
    pairs = 0
    for pixels, caption in zip(scenes.pixels, scenes.captions, strict=True):
        words = GRAMMAR.fullmatch(caption).groupdict()
        colours = [tuple(p) for p in pixels.flatten(1).T.tolist()]
        pure = Counter(name for name, rgb in PALETTE.items() for c in colours if c == rgb)
        named = {words[k] for k in ("colour", "colour_2", "background")} - {None}
        assert set(pure) == named, caption
        assert pure.most_common(1)[0][0] == words["background"], caption
        kind, x, y, extent = seen(cover_of(pixels, words["colour"], words["background"]))
        assert kind == words["kind"], caption
        if words["relation"] is None:
            assert words["size"] == ("small" if extent < 0.36 * size else "large"), caption
            continue
        pairs += 1
        kind_2, x_2, y_2, extent_2 = seen(cover_of(pixels, words["colour_2"], words["background"]))
        assert kind_2 == words["kind_2"], caption
        for named, length in ((words["size"], extent), (words["size_2"], extent_2)):
            assert named in (None, "small"), caption
            assert length < (0.36 if named else 0.42) * size, caption
        right, down = DIRECTIONS[words["relation"]]
        along = (x - x_2) * right + (y - y_2) * down
        across = abs((x - x_2) * down) + abs((y - y_2) * right)
        assert along > 0.3 * size, caption
        assert across < 0.5 * along, caption  # no other relation is half as true
    assert 0 < pairs < n


def test_captions_are_written_out():
    """Also a promise to weights that were trained on these scenes: they stay what they are."""
    assert shapes(9).captions == [
        "a large green ring on a white background",
        "a large green ring on an orange background",
        "a small blue circle on an orange background",
        "a large green star on a blue background",
        "a large blue triangle on a yellow background",
        "a black triangle above a blue triangle on a red background",
        "a yellow triangle below a red circle on a green background",
        "a large orange square on a purple background",
        "a large purple circle on a blue background",
    ]


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (
            Scene((Thing("small", "red", "circle", 0.5, 0.5, 0.1),), "", "blue"),
            "a small red circle on a blue background",
        ),
        (one("star", colour="orange"), "an orange star on a black background"),
        (
            Scene(
                (
                    Thing("", "red", "circle", 0.5, 0.2, 0.1),
                    Thing("large", "orange", "ring", 0.5, 0.7, 0.2),
                ),
                "above",
                "orange",
            ),
            "a red circle above a large orange ring on an orange background",
        ),
    ],
)
def test_a_scene_in_words(scene, caption):
    assert scene.caption == caption


@pytest.mark.parametrize(
    ("number", "relation"), [(0, ""), (1, "above"), (2, ""), (2, "beside"), (3, "above")]
)
def test_scenes_without_a_caption(number, relation):
    scene = Scene(one("star").things * number, relation, "blue")
    with pytest.raises(ValueError, match=f"{number} things, relation = '{relation}': .*'above'"):
        _ = scene.caption
    assert draw_scene(scene).shape == (3, 32, 32)


def test_scene_i_depends_on_seed_and_i_alone():
    many = shapes(12, seed=3)
    for n in (0, 1, 7):
        few = shapes(n, seed=3)
        assert torch.equal(few.pixels, many.pixels[:n])
        assert few.captions == many.captions[:n]
        assert few.scenes == many.scenes[:n]
    other = shapes(12, seed=4)
    assert not set(other.scenes) & set(many.scenes)
    assert len(set(many.scenes)) == 12


def test_neither_reads_nor_moves_the_global_generators():
    torch.manual_seed(0)
    np.random.seed(0)
    first = shapes(2)
    assert torch.equal(shapes(2).pixels, first.pixels)
    drawn = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    assert drawn == (torch.rand(1).item(), np.random.rand())


def test_at_another_size_the_same_scenes_are_drawn():
    small, large = shapes(30, seed=1), shapes(30, seed=1, size=64)
    assert small.scenes == large.scenes and small.captions == large.captions
    pooled = torch.nn.functional.avg_pool2d(large.pixels.float(), 2)
    assert (pooled - small.pixels.float()).abs().mean() < 0.5
    assert shapes(1, size=16).pixels.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("n", [0, 5])
def test_shapes_and_types_of_a_captioned_set(n):
    scenes = shapes(n)
    assert scenes.pixels.shape == (n, 3, 32, 32)
    assert scenes.pixels.dtype == torch.uint8
    assert len(scenes.captions) == len(scenes.scenes) == n
    assert all(s.caption == c for s, c in zip(scenes.scenes, scenes.captions, strict=True))
    assert scenes.x.dtype == torch.float32
    assert torch.equal(scenes.x, from_uint8(scenes.pixels))


def test_everything_occurs_as_often_as_it_should():
    """Within four standard errors of its share."""
    n = 3000
    scenes = shapes(n, size=16).scenes
    pairs = [s for s in scenes if len(s.things) == 2]
    singles = [s for s in scenes if len(s.things) == 1]
    assert len(pairs) + len(singles) == n

    def even(found, options):
        counts, share = Counter(found), 1 / len(options)
        assert set(counts) == set(options)
        bound = 4 * math.sqrt(share * (1 - share) * counts.total())
        assert all(abs(c - share * counts.total()) < bound for c in counts.values()), counts

    even([len(s.things) for s in scenes], (1, 2))
    even([s.background for s in scenes], PALETTE)
    even([s.things[0].colour for s in scenes], PALETTE)
    even([s.things[1].colour for s in pairs], PALETTE)
    even([s.things[0].kind for s in scenes], KINDS)
    even([s.things[1].kind for s in pairs], KINDS)
    even([s.things[0].size for s in singles], ("small", "large"))
    even([s.relation for s in pairs], RELATIONS)
    assert {s.relation for s in singles} == {""}
    for i in (0, 1):  # a quarter of the things in pairs are small, each by itself
        even([s.things[i].size or pick for s, pick in zip(pairs, cycle("abc"))], ("small", *"abc"))
    both = sum(all(t.size for t in s.things) for s in pairs)
    assert abs(both - len(pairs) / 16) < 4 * math.sqrt(len(pairs) * 15 / 256)


def test_things_lie_inside_and_apart_and_differ_in_colour():
    for scene in shapes(500, size=16).scenes:
        boxes = [
            (t.x - t.radius, t.y - t.radius, t.x + t.radius, t.y + t.radius) for t in scene.things
        ]
        assert all(0.03 < edge < 0.97 for box in boxes for edge in box)
        assert len({scene.background, *(t.colour for t in scene.things)}) == 1 + len(boxes)
        if len(boxes) == 2:
            (left, top, right, bottom), (left_2, top_2, right_2, bottom_2) = boxes
            gap = max(left_2 - right, left - right_2, top_2 - bottom, top - bottom_2)
            assert gap > 0.06  # two pixels of 32


def test_places_and_radii_fill_the_room_that_they_have():
    """Of 1,500 scenes the outermost come near the bounds, and none goes beyond. In pixels of 32: the
    edge is 1 away, two things are 2 apart."""
    scenes = shapes(1500, size=16).scenes
    singles = [s.things[0] for s in scenes if len(s.things) == 1]
    pairs, sized = [], []
    for s in scenes:
        if len(s.things) == 2:
            ahead, behind = sorted(s.things, key=lambda t: t.x + t.y)
            upright = s.relation in ("above", "below")
            sized += [(t.size, t.radius) for t in s.things]
            pairs.append(((ahead.y, ahead.x) if upright else (ahead.x, ahead.y), ahead.radius))
            pairs[-1] += ((behind.y, behind.x) if upright else (behind.x, behind.y), behind.radius)

    def fills(values, low, high):
        near = 0.1 * (high - low)
        assert low <= min(values) + 1e-9 < low + near
        assert high - near < max(values) - 1e-9 <= high

    for name, low, high in (("small", 0.13, 0.16), ("large", 0.24, 0.3)):
        fills([t.radius for t in singles if t.size == name], low, high)
    for axis in ("x", "y"):  # 0: at the near edge, 1: at the far one
        room = [(t.radius + 0.032, getattr(t, axis)) for t in singles]
        fills([(at - least) / (1 - 2 * least) for least, at in room], 0, 1)
    for name, low, high in (("small", 0.13, 0.16), ("", 0.15, 0.19)):
        fills([radius for size, radius in sized if size == name], low, high)
    rooms = [1 - 2 * 0.032 - 0.064 - 2 * (r + r_2) for _, r, _, r_2 in pairs]
    befores = [a - r - 0.032 for (a, _), r, _, _ in pairs]
    afters = [1 - 0.032 - r_2 - a_2 for _, _, (a_2, _), r_2 in pairs]
    for parts in (befores, afters):
        fills([part / room for part, room in zip(parts, rooms)], 0, 1)
    fills([(b + a) / room for b, a, room in zip(befores, afters, rooms)], 0, 1)  # 1: 2 pixels apart
    for across in ([b for (_, b), _, _, _ in pairs], [b for _, _, (_, b), _ in pairs]):
        fills(across, 0.23, 0.77)
    offsets = sorted(b_2 - b for (_, b), _, (_, b_2), _ in pairs)
    fills([abs(d) for d in offsets], 0, 0.1)
    assert abs(sum(offsets)) < 4 * math.sqrt(2 * 0.1**2 / 12 * len(offsets))  # to both sides alike
    assert offsets[0] < -0.09
    assert offsets[-1] > 0.09


@pytest.mark.parametrize(
    ("kind", "area"),
    [
        ("circle", math.pi),
        ("square", 1.7**2),
        ("triangle", math.sqrt(3)),  # side 2
        ("star", 5 * 0.5 * math.sin(math.pi / 5)),  # ten triangles with sides 1 and 1/2
        ("cross", 2 * 2 * 0.68 - 0.68**2),
        ("ring", math.pi * (1 - 0.5**2)),
    ],
)
def test_areas_of_the_kinds(kind, area):
    cover = draw_scene(one(kind, 0.53, 0.47, 0.4), 256)[0].double() / 255
    assert cover.sum().item() == pytest.approx(area * (0.4 * 256) ** 2, rel=2e-3)


@pytest.mark.parametrize(
    ("kind", "reach"),
    [
        ("circle", 1),
        ("square", 0.85),
        ("triangle", math.sqrt(3) / 2),
        ("star", 0.516),  # to the notch between its legs, half a pixel beside its highest point
        ("cross", 1),
        ("ring", 0.5),
    ],
)
def test_every_kind_is_upright_and_where_it_belongs(kind, reach):
    """Left and right are mirror images; nothing lies beyond the radius; the triangle and the star point
    up. `reach`: what is covered straight below the centre, in radii."""
    cover = draw_scene(one(kind, radius=0.25), 64)[0].double() / 255
    assert_close(cover, cover.flip(1), rtol=0, atol=1 / 255)
    assert (cover > 0).sum() == (cover[15:49, 15:49] > 0).sum()
    assert cover[32:, 32].sum().item() == pytest.approx(16 * reach, abs=0.15)
    rows = cover.sum(1).nonzero()[:, 0]
    top, bottom = (int((cover[row] > 0).sum()) for row in (rows.min() + 1, rows.max() - 1))
    assert (top < bottom) == (kind in ("triangle", "star"))


def test_edges_are_the_covered_share_of_a_pixel():
    radius = 4 / (0.85 * 32)  # a square of 8 x 8 pixels
    on_the_grid = draw_scene(one("square", radius=radius))
    assert set(on_the_grid.flatten().tolist()) == {0, 255}
    assert (on_the_grid[0] == 255).sum() == 64
    assert bool((on_the_grid[:, 12:20, 12:20] == 255).all())
    shifted = draw_scene(one("square", 0.5 + 0.25 / 32, radius=radius))[0, 16, 11:21]
    assert shifted.tolist() == [0, 191, *[255] * 7, 64]  # 3/4 and 1/4 of 255, rounded


def test_colours_and_what_lies_on_top():
    below = Thing("", "red", "square", 0.5, 0.5, 0.45)
    above = Thing("", "yellow", "circle", 0.5, 0.5, 0.2)
    image = draw_scene(Scene((below, above), "", "blue"))
    for at, colour in ((0, "blue"), (6, "red"), (16, "yellow")):
        assert tuple(image[:, at, at].tolist()) == PALETTE[colour]
    hidden = draw_scene(Scene((above, below), "", "blue"))
    assert tuple(hidden[:, 16, 16].tolist()) == PALETTE["red"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1,), ValueError, "n = -1 must be at least 0"),
        ((1, -2), ValueError, "seed = -2 must be at least 0"),
        ((1, 0, 15), ValueError, "size = 15 must be at least 16"),
        ((2.0,), TypeError, "n = 2.0 is float, expected int"),
        ((True,), TypeError, "n = True is bool"),
        ((1, "0"), TypeError, "seed = '0' is str, expected int"),
        ((1, None), TypeError, "seed = None is NoneType"),
        ((1, 0, 32.0), TypeError, "size = 32.0 is float"),
    ],
)
def test_arguments_of_shapes_that_do_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        shapes(*arguments)


@pytest.mark.parametrize(
    ("scene", "size", "error", "message"),
    [
        (one("hexagon"), 32, ValueError, "kind = 'hexagon': choose from .*'circle'"),
        (one("star", colour="pink"), 32, ValueError, "colour = 'pink': choose from .*'red'"),
        (one("star", background="grey"), 32, ValueError, "colour = 'grey'"),
        (
            one("star", radius=0.0),
            32,
            ValueError,
            "radius = 0.0 of the star must be finite and greater than 0",
        ),
        (one("star", radius=math.nan), 32, ValueError, "radius = nan"),
        (one("star", radius=math.inf), 32, ValueError, "radius = inf"),
        (one("star", math.nan), 32, ValueError, "centre = .nan, 0.5. of the star must be finite"),
        (one("star", y=math.inf), 32, ValueError, "centre = .0.5, inf."),
        (one("star"), 8, ValueError, "size = 8 must be at least 16"),
        (one("star"), 32.0, TypeError, "size = 32.0 is float"),
    ],
)
def test_scenes_that_cannot_be_drawn(scene, size, error, message):
    with pytest.raises(error, match=message):
        draw_scene(scene, size)
