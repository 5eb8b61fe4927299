"""The picture of the rooms: which imports it shows."""

from tools.pages import imports


def test_every_way_to_import_counts():
    source = "import diffusion_core.networks.unet\nfrom diffusion_core import files, __version__\ndef f():\n    from diffusion_core.data import images\nimport torch"
    assert set(imports.imported(source)) == {"networks", "files", "data"}


def test_an_arrow_that_a_longer_way_says_is_not_drawn():
    assert imports.direct({("a", "b"), ("b", "c"), ("a", "c"), ("a", "d")}) == {
        ("a", "b"),
        ("b", "c"),
        ("a", "d"),
    }
