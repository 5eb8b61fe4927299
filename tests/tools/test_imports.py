"""Imports inside the package go downwards."""

from tools.pages import imports


def test_no_room_imports_one_that_stands_above_it():
    assert imports.upwards(imports.edges()) == set(), "FLOORS of tools/pages/imports.py has the order"


def test_an_import_upwards_is_found():
    wrong = {("schedules", "networks"), ("ddpm", "ddim"), ("training", "cli"), ("a_new_room", "cli"), ("cli", "a_new_room")}
    right = {("training", "networks"), ("cli", "training"), ("ddim", "ddpm"), ("__main__", "cli")}
    assert imports.upwards(wrong | right) == wrong


def test_every_way_to_import_counts():
    source = "import diffusion_core.networks.unet\nfrom diffusion_core import files, __version__\ndef f():\n    from diffusion_core.data import images\nimport torch"
    assert set(imports.imported(source)) == {"networks", "files", "data"}


def test_an_arrow_that_a_longer_way_says_is_not_drawn():
    assert imports.direct({("a", "b"), ("b", "c"), ("a", "c"), ("a", "d")}) == {("a", "b"), ("b", "c"), ("a", "d")}
