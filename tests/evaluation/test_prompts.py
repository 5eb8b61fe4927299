"""The judge of painted images: right on drawn truth, wrong for every single error."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffusion_core.data import KINDS, PALETTE, Scene, Thing, draw_scene, from_uint8, shapes
from diffusion_core.evaluation import Share, judge_scene, prompt_accuracy, read_scene

PARTS = ("background", "number", "colours", "kinds", "sizes", "relation")
NAMED = {"above": (0, -1), "below": (0, 1), "to the left of": (-1, 0), "to the right of": (1, 0)}


def paint(scene, size=32):
    return from_uint8(draw_scene(scene, size))


def blurred(x, sigma):
    """Each pixel a mean of its neighbours, with normal weights of this many pixels."""
    weights = torch.exp(-(torch.arange(-3, 4).float() ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    x = F.pad(x, (3, 3, 3, 3), mode="replicate").flatten(0, 1)[:, None]
    x = F.conv2d(F.conv2d(x, weights[None, None, :, None]), weights[None, None, None, :])
    return x.reshape(-1, 3, *x.shape[-2:])


def one(kind="circle", colour="red", size="", radius=0.25, background="white", x=0.5, y=0.5):
    return Scene((Thing(size, colour, kind, x, y, radius),), "", background)


def two(first="circle", second="square", relation="above", at=((0.5, 0.25), (0.5, 0.75))):
    things = (Thing("", "red", first, *at[0], 0.17), Thing("", "blue", second, *at[1], 0.17))
    return Scene(things, relation, "white")


# --- what is there is read ---


@pytest.mark.parametrize(("size", "n"), [(32, 400), (64, 60)])
def test_drawn_truth_is_right(size, n):
    data = shapes(n, seed=11, size=size)
    verdicts = [judge_scene(x, scene) for x, scene in zip(data.x, data.scenes)]
    wrong = [s.caption for s, v in zip(data.scenes, verdicts) if not v.right]
    assert not wrong
    assert all(getattr(v, part) is True for v in verdicts for part in PARTS)
    assert min(v.iou for v in verdicts) > 0.9


@pytest.mark.parametrize(("noise", "blur"), [(0.03, 0.0), (0.0, 0.5), (0.03, 0.5), (0.0, 0.7)])
def test_noise_and_a_little_blur_change_nothing(noise, blur):
    """As an autoencoder's reconstructions are; sigma 0.7 is 30 dB."""
    n = 150
    data = shapes(n, seed=12)
    x = blurred(data.x, blur) if blur else data.x
    x = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    verdicts = [judge_scene(image, scene) for image, scene in zip(x, data.scenes)]
    for part in PARTS:
        assert sum(getattr(v, part) for v in verdicts) >= 0.99 * n, part
    assert sum(v.right for v in verdicts) >= 0.99 * n


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radius", [0.13, 0.16, 0.24, 0.3])
def test_kind_centre_and_radius_are_read(kind, radius):
    (thing,) = read_scene(paint(one(kind, radius=radius, x=0.431, y=0.547))).things
    assert (thing.kind, thing.colour) == (kind, "red")
    assert thing.size == ("small" if radius < 0.2 else "large")
    assert math.hypot(thing.x - 0.431, thing.y - 0.547) < 0.35 / 32
    assert thing.radius == pytest.approx(radius, abs=0.5 / 32)


@pytest.mark.parametrize("background", PALETTE)
@pytest.mark.parametrize("colour", PALETTE)
def test_edges_are_no_third_colour(colour, background):
    """Halfway from red to yellow lies orange, almost; from white to black lie the greys."""
    if colour == background:
        return
    for kind in ("ring", "star"):
        image = blurred(paint(one(kind, colour, radius=0.13, background=background))[None], 0.5)[0]
        seen = read_scene(image)
        assert seen.background == background
        assert [(t.colour, t.kind) for t in seen.things] == [(colour, kind)]


def test_an_empty_image_and_noise_are_read_too():
    assert read_scene(torch.full((3, 32, 32), 1.0)) == ("white", (), ())
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not judge_scene(noise, one()).right
    verdict = judge_scene(torch.full((3, 32, 32), 1.0), two())
    assert verdict == (False, True, False, False, False, False, False, 0.0)


def test_things_of_one_colour_are_told_apart_and_touching_ones_of_two_colours_too():
    same = two()._replace(
        things=(Thing("", "red", "ring", 0.3, 0.3, 0.17), Thing("", "red", "star", 0.7, 0.7, 0.17))
    )
    assert {t.kind for t in read_scene(paint(same)).things} == {"ring", "star"}
    touching = two("square", "square", at=((0.5, 0.35), (0.5, 0.62)))
    assert judge_scene(paint(touching), touching).right


def test_a_speck_is_no_thing_and_six_pixels_are_one():
    image = paint(one())
    image[:, 2, 2:7] = from_uint8(torch.tensor(PALETTE["blue"], dtype=torch.uint8))[:, None]
    assert judge_scene(image, one()).right
    image[:, 3, 2:7] = image[:, 2, 2:7]
    assert not judge_scene(image, one()).number


def test_values_beyond_the_range_are_clipped():
    assert judge_scene(3 * paint(one("star", "black")), one("star", "black")).right


# --- every single error is found, by the part that it belongs to ---


def pick(options, rng):
    return options[int(rng.integers(len(options)))]


def free(scene):
    used = {scene.background, *(t.colour for t in scene.things)}
    return [colour for colour in PALETTE if colour not in used]


def changed(scene, i, **new):
    things = list(scene.things)
    things[i] = things[i]._replace(**new)
    return scene._replace(things=tuple(things))


def some(scene, rng):
    return int(rng.integers(len(scene.things)))


def another_colour(scene, rng):
    return changed(scene, some(scene, rng), colour=pick(free(scene), rng))


def another_kind(scene, rng):
    i = some(scene, rng)
    return changed(scene, i, kind=pick([k for k in KINDS if k != scene.things[i].kind], rng))


def another_size(scene, rng):
    if len(scene.things) == 2:
        return None
    thing = scene.things[0]
    radius = rng.uniform(0.24, 0.3) if thing.size == "small" else rng.uniform(0.13, 0.16)
    x, y = (min(max(at, radius + 0.032), 1 - radius - 0.032) for at in (thing.x, thing.y))
    return changed(scene, 0, radius=radius, x=x, y=y)


def swapped_colours(scene, rng):
    if len(scene.things) == 1 or scene.things[0].kind == scene.things[1].kind:
        return None
    a, b = scene.things
    return scene._replace(things=(a._replace(colour=b.colour), b._replace(colour=a.colour)))


def swapped_places(scene, rng):
    if len(scene.things) == 1:
        return None
    a, b = scene.things
    return scene._replace(things=(a._replace(x=b.x, y=b.y), b._replace(x=a.x, y=a.y)))


def beside_for_above(scene, rng):
    if len(scene.things) == 1:
        return None
    return scene._replace(things=tuple(t._replace(x=t.y, y=t.x) for t in scene.things))


def another_background(scene, rng):
    return scene._replace(background=pick(free(scene), rng))


def a_missing_thing(scene, rng):
    kept = list(scene.things)
    del kept[some(scene, rng)]
    return scene._replace(things=tuple(kept))


def an_extra_thing(scene, rng, colours=free):
    for _ in range(200):
        r = rng.uniform(0.13, 0.16)
        x, y = rng.uniform(0.032 + r, 0.968 - r, 2)
        gaps = [max(abs(x - t.x), abs(y - t.y)) - r - t.radius for t in scene.things]
        if min(gaps) > 0.064:
            extra = Thing("", pick(colours(scene), rng), pick(KINDS, rng), x, y, r)
            return scene._replace(things=(*scene.things, extra))
    return None


def a_double(scene, rng):
    return an_extra_thing(scene, rng, lambda scene: [t.colour for t in scene.things])


@pytest.mark.parametrize(
    ("error", "wrong", "untouched"),
    [
        (another_colour, "colours", {"background", "number", "kinds", "sizes", "relation"}),
        (another_kind, "kinds", {"background", "number", "colours", "sizes", "relation"}),
        (another_size, "sizes", {"background", "number", "colours", "kinds"}),
        (swapped_colours, "relation", {"background", "number", "colours"}),
        (swapped_places, "relation", {"background", "number", "colours", "kinds", "sizes"}),
        (beside_for_above, "relation", {"background", "number", "colours", "kinds", "sizes"}),
        (another_background, "background", {"number", "colours", "kinds", "sizes", "relation"}),
        (a_missing_thing, "number", {"background"}),
        (an_extra_thing, "number", {"background", "colours", "kinds", "sizes", "relation"}),
        (a_double, "number", {"background", "colours", "kinds"}),
    ],
)
def test_every_error_is_found_and_named(error, wrong, untouched):
    n, rng = 0, np.random.default_rng(3)
    for scene in shapes(250, seed=5, size=16).scenes:
        painted = error(scene, rng)
        if painted is None or n == 60:
            continue
        n += 1
        verdict = judge_scene(paint(painted), scene)
        assert not verdict.right, (scene, painted)
        assert not getattr(verdict, wrong), (scene, painted)
        assert all(getattr(verdict, part) for part in untouched), (scene, painted, verdict)
    assert n == 60


def test_colours_are_bound_to_kinds():
    """The same colours, the same kinds, the same relation of red to blue: the kinds are swapped."""
    verdict = judge_scene(paint(two("square", "circle")), two("circle", "square"))
    assert verdict[:-1] == (False, True, True, True, False, True, True)


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize("angle", range(10, 360, 20))
def test_a_relation_holds_in_a_quarter_of_the_directions(named, angle):
    x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    scene = two(
        relation=named, at=((0.5 + 0.27 * x, 0.5 + 0.27 * y), (0.5 - 0.27 * x, 0.5 - 0.27 * y))
    )
    right, down = NAMED[named]
    assert judge_scene(paint(scene), scene).relation == (
        x * right + y * down > math.cos(math.pi / 4)
    )


def test_the_size_of_a_thing_is_judged_only_where_it_is_named():
    for radius in (0.14, 0.27):
        assert judge_scene(paint(one(radius=radius)), one()).right
        for size in ("small", "large"):
            named = one(size=size)
            assert judge_scene(paint(one(radius=radius)), named).right == (
                size == ("small" if radius < 0.2 else "large")
            )


def test_a_badly_drawn_thing_is_wrong_and_the_bound_can_be_chosen():
    image = paint(one("square", radius=0.28))
    image[:, 11:18, 10:14] = 1.0  # a hole of the background's colour
    verdict = judge_scene(image, one("square"))
    assert 0.8 < verdict.iou < 0.95
    assert verdict.right
    assert not judge_scene(image, one("square"), iou=0.95).kinds
    image[:, 8:24, 14:18] = 1.0
    assert not judge_scene(image, one("square")).right


# --- shares ---


def test_shares_count_only_the_prompts_that_name_a_part():
    scenes = [one("circle", size="large"), one("star"), two(), two()]
    painted = [one("circle", size="large"), one("ring"), two(), two(at=((0.25, 0.5), (0.75, 0.5)))]
    shares = prompt_accuracy(torch.stack([paint(s) for s in painted]), scenes)
    assert list(shares) == ["right", *PARTS]
    assert shares["right"] == Share(0.5, 0.25, 4)
    assert shares["kinds"] == Share(0.75, math.sqrt(0.75 * 0.25 / 4), 4)
    assert shares["sizes"] == Share(1.0, 0.0, 1)
    assert shares["relation"] == Share(0.5, math.sqrt(0.125), 2)
    assert str(shares["right"]) == "50.0 ± 25.0 % (n = 4)"
    assert "relation" not in prompt_accuracy(paint(one())[None], [one()])


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 32, 32), r"pixels \(1, 32, 32\): expected \(3, H, H\)"),
        (torch.zeros(3, 32, 16), r"pixels \(3, 32, 16\)"),
        (torch.zeros(3, 32), r"pixels \(3, 32\)"),
        (torch.zeros(3, 8, 8), "H = 8 must be at least 16"),
        (
            torch.zeros(3, 32, 32, dtype=torch.uint8),
            r"torch.uint8: expected \[-1, 1\], see from_uint8",
        ),
        (torch.full((3, 32, 32), math.nan), "not finite"),
    ],
)
def test_images_that_cannot_be_read(pixels, message):
    with pytest.raises(ValueError, match=message):
        read_scene(pixels)


@pytest.mark.parametrize(
    ("scene", "message"),
    [
        (one("hexagon"), "kind = 'hexagon'"),
        (one(colour="pink"), "colour = 'pink'"),
        (one(background="grey"), "colour = 'grey'"),
        (two(relation="beside"), "relation = 'beside'"),
    ],
)
def test_scenes_that_no_image_can_show(scene, message):
    with pytest.raises(ValueError, match=message):
        judge_scene(paint(one()), scene)


def test_images_and_scenes_come_in_pairs_and_in_the_models_range():
    images = torch.stack([paint(one()), paint(one())])
    with pytest.raises(ValueError, match="2 images and 1 scenes"):
        prompt_accuracy(images, [one()])
    with pytest.raises(ValueError, match="0 images and 0 scenes"):
        prompt_accuracy(images[:0], [])
    with pytest.raises(ValueError, match=r"expected \[-1, 1\]"):
        prompt_accuracy((images + 1) / 2, [one(), one()])
