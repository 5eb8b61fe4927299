"""Figures: what is drawn, not only that something is."""

import io

import matplotlib
import pytest
import torch
from PIL import Image

from diffusion_core.data import to_uint8
from diffusion_core.ddpm import ddpm_step
from diffusion_core.plotting import (
    COLOURS,
    animate,
    set_style,
    show_images,
    show_source,
    show_trajectory,
)
from diffusion_core.schedules import NoiseSchedule

matplotlib.use("agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _clean():
    with matplotlib.rc_context():
        yield
    plt.close("all")


def ramp(n: int, channels: int = 1) -> torch.Tensor:
    """n images, each of one grey level, and a bright first pixel."""
    x = torch.linspace(-1, 1, n)[:, None, None, None].expand(n, channels, 3, 4).clone()
    x[:, :, 0, 0] = 1
    return x


def drawn(figure):
    """The axes that hold an image."""
    return [axis for axis in figure.axes if axis.images]


def test_style():
    set_style()
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLOURS)
    assert len(set(COLOURS)) == len(COLOURS)
    assert plt.rcParams["figure.facecolor"] == plt.rcParams["savefig.facecolor"] == "white"


def test_each_image_is_drawn_once_in_order():
    x = ramp(5)
    figure = show_images(x, columns=3, scale=0.5)
    assert len(figure.axes) == 6  # two rows of three, the last place empty
    assert len(drawn(figure)) == 5
    assert not figure.axes[5].images
    for axis, image in zip(drawn(figure), x):
        assert (axis.images[0].get_array() == to_uint8(image)[0].numpy()).all()
        assert axis.images[0].get_clim() == (0, 255)
    assert figure.get_size_inches().tolist() == pytest.approx([1.5, 1.0])


def test_colour_and_values_outside_the_range():
    x = 3 * ramp(2, channels=3)
    figure = show_images(x)
    pixels = drawn(figure)[1].images[0].get_array()
    assert pixels.shape == (3, 4, 3)
    assert pixels.max() == 255


def test_titles_and_rows():
    figure = show_images(ramp(4), columns=2, titles=["a", "b"], rows=["first", "second"])
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["first", "", "second", ""]
    figure = show_images(ramp(3), columns=2, titles=["a", "b", "c"])
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", ""]


def test_eight_columns_unless_told_otherwise():
    assert len(show_images(ramp(3)).axes) == 3
    assert len(show_images(ramp(9)).axes) == 16


@pytest.mark.parametrize("shape", [(3, 4), (2, 2, 3, 3), (0, 1, 3, 3), (1, 3, 3)])
def test_show_images_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"expected \(B, 1 or 3, H, W\)"):
        show_images(torch.zeros(shape))


def test_wrong_numbers_of_titles():
    with pytest.raises(ValueError, match="3 titles for 4 images in 2 columns"):
        show_images(ramp(4), columns=2, titles=["a", "b", "c"])
    with pytest.raises(ValueError, match="1 row titles for 2 rows"):
        show_images(ramp(4), columns=2, rows=["a"])
    with pytest.raises(ValueError, match="1 titles for 2 moments"):
        show_trajectory([ramp(2), ramp(2)], ["t = 0"])


def test_a_trajectory_has_one_row_an_image_and_one_column_a_moment():
    moments = [ramp(2), -ramp(2), 0.5 * ramp(2)]
    figure = show_trajectory(moments, ["a", "b", "c"])
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", "", "", ""]
    wanted = [moments[column][row] for row in range(2) for column in range(3)]
    for axis, image in zip(drawn(figure), wanted):
        assert (axis.images[0].get_array() == to_uint8(image)[0].numpy()).all()


def test_images_with_a_gradient_can_be_shown():
    assert show_images(ramp(1).requires_grad_()).axes


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_has_every_frame_and_holds_the_last(channels):
    frames = [ramp(3, channels), -ramp(3, channels), torch.zeros(3, channels, 3, 4)]
    shown = animate(frames, columns=2, scale=2, milliseconds=50, hold=900)
    picture = Image.open(io.BytesIO(shown.data))
    assert picture.format == "GIF"
    assert picture.n_frames == 3
    assert picture.size == (2 * (2 * 5 + 1), 2 * (2 * 4 + 1))  # 2 x 2 places with a gap of one
    durations = []
    for i in range(3):
        picture.seek(i)
        picture.load()
        durations.append(picture.info["duration"])
    assert durations == [50, 50, 900]
    assert picture.info["loop"] == 0


def test_an_animation_needs_frames():
    with pytest.raises(ValueError, match="no frames"):
        animate([])


def test_source_is_the_shipped_source():
    assert show_source(ddpm_step).data.startswith("def ddpm_step(")
    assert "class NoiseSchedule" in show_source(NoiseSchedule).data
    assert show_source(NoiseSchedule.at).data.lstrip().startswith("def at(")


def test_a_decorated_function_shows_its_own_source():
    from diffusion_core.sampling import _walk

    text = show_source(_walk).data
    assert "def _walk(" in text
    assert "@torch.no_grad()" in text


@pytest.mark.parametrize("thing", [3, "ddpm_step", len])
def test_what_has_no_source_is_refused(thing):
    with pytest.raises(TypeError, match="no Python source"):
        show_source(thing)
