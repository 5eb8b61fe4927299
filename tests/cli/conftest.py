"""A run of the command line that several of its tests look at."""

import pytest

from diffusion_core.__main__ import main


@pytest.fixture(scope="package")
def run(tmp_path_factory):
    """A run of a few steps on the digits."""
    folder = tmp_path_factory.mktemp("runs")
    assert (
        main(
            [
                "train",
                "digits",
                "--steps",
                "6",
                "--batch-size",
                "8",
                "--runs",
                str(folder),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    return folder
