"""What the text-to-image model may see in training, and what it never does."""

from itertools import islice

import pytest

from diffusion_core.data import Scene, Thing
from diffusion_core.text_to_image import held_out, is_new, scenes_of, training_scenes


def test_the_training_shows_neither_the_new_kind_nor_what_is_held_out():
    for scene in training_scenes(2_000):
        assert not is_new(scene) and not held_out(scene)
        assert "cross" not in scene.caption


@pytest.mark.parametrize("things", [1, 2])
def test_an_eighth_is_held_out(things):
    scenes = list(islice(scenes_of(5, things=things, held=None), 4_000))
    share = sum(map(held_out, scenes)) / len(scenes)
    assert abs(share - 1 / 8) < 0.03  # combinations, not scenes, are counted


def test_every_word_is_in_the_training():
    """A held-out scene is a new combination of known words."""
    seen = set(" ".join(scene.caption for scene in training_scenes(3_000)).split())
    for scene in islice(scenes_of(6, held=True), 300):
        assert set(scene.caption.split()) <= seen


def things(*words):
    return tuple(Thing("", *pair.split(), 0.3, 0.3, 0.15) for pair in words)


def test_what_is_held_out_does_not_hang_on_order_relation_or_size():
    pair = things("red ring", "blue star")
    one = {held_out(Scene(pair, r, g)) for r in ("above", "below") for g in ("white", "green")}
    assert len(one | {held_out(Scene(pair[::-1], "above", "white"))}) == 1
    thing = things("red ring")[0]
    sizes = {held_out(Scene((thing._replace(size=s),), "", "blue")) for s in ("small", "large")}
    assert len(sizes) == 1
    grounds = ("orange", "yellow", "green", "blue", "purple", "white", "black")
    kinds = ("circle", "square", "triangle", "star", "ring")
    each = {held_out(Scene((thing._replace(kind=k),), "", g)) for k in kinds for g in grounds}
    assert each == {True, False}


def test_scenes_of_gives_what_was_asked_for():
    for things, held in ((1, True), (2, True), (1, False), (2, False)):
        for scene in islice(scenes_of(3, things=things, held=held), 50):
            assert len(scene.things) == things and held_out(scene) == held
