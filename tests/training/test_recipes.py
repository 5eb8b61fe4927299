"""The recipes build what they name."""

import argparse

import pytest

from diffusion_core.cli import build_parser
from diffusion_core.schedules import make_schedule
from diffusion_core.training import RECIPES


def test_recipes_build():
    for recipe in RECIPES.values():
        net, schedule = recipe.build()
        assert schedule.T == 1000
        assert net.classes == 10
    with pytest.raises(ValueError, match="schedule = 'sigmoid' is unknown"):
        make_schedule("sigmoid")
    assert isinstance(build_parser(), argparse.ArgumentParser)
