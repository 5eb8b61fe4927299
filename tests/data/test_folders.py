"""A folder of captioned images: what is read, what is refused, and what is written."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_core._validate import UsageError
from diffusion_core.data import load_captioned_folder, save_captioned_folder

RED, WHITE, BLUE = (255, 0, 0), (255, 255, 255), (0, 0, 255)


def write(folder, images, lines=None):
    """Images by name, and `metadata.jsonl`: a caption an image, or the lines given."""
    folder.mkdir(exist_ok=True)
    for name, image in images.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if isinstance(image, bytes):
            (folder / name).write_bytes(image)
        else:
            image.save(folder / name)
    if lines is None:
        lines = [json.dumps({"file_name": name, "text": f"caption of {name}"}) for name in images]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf8")
    return folder


def plain(colour=RED, size=(32, 32), mode="RGB"):
    return Image.new(mode, size, colour)


def pixel(pixels, i=0, row=0, column=0):
    return tuple(pixels[i, :, row, column].tolist())


# --- what is read ---


def test_there_and_back(tmp_path):
    """PNG loses nothing, and the order is kept."""
    pixels = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    captions = [f"{i} – ünïcode “quotes” \\ and\ttabs" for i in range(12)]
    save_captioned_folder(tmp_path / "new" / "folder", pixels, captions)
    found = load_captioned_folder(tmp_path / "new" / "folder")
    assert torch.equal(found.pixels, pixels)
    assert found.pixels.is_contiguous()
    assert found.captions == captions


def test_the_order_is_that_of_the_lines(tmp_path):
    images = {"b.png": plain(BLUE), "a.png": plain(RED), "sub/c.png": plain(WHITE)}
    found = load_captioned_folder(write(tmp_path / "f", images))
    assert found.captions == [f"caption of {name}" for name in images]
    assert [pixel(found.pixels, i) for i in range(3)] == [BLUE, RED, WHITE]


def test_hugging_face_reads_what_we_write(tmp_path):
    """The names of the keys are theirs, one JSON object a line."""
    save_captioned_folder(tmp_path, torch.zeros(2, 3, 4, 4, dtype=torch.uint8), ["a", "b"])
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert rows == [{"file_name": f"000{i}.png", "text": "ab"[i]} for i in range(2)]


def test_further_keys_blank_lines_and_a_mark_of_windows(tmp_path):
    line = json.dumps({"file_name": "a.png", "text": " a circle ", "label": 3})
    folder = write(tmp_path, {"a.png": plain()}, ["\ufeff" + line, "", "  "])
    assert load_captioned_folder(folder).captions == ["a circle"]


def test_other_files_are_no_images(tmp_path):
    write(tmp_path, {"a.png": plain()})
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".hidden.png").write_text("")
    assert len(load_captioned_folder(tmp_path).pixels) == 1


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (plain(100, mode="L"), (100, 100, 100)),
        (plain(1, mode="1"), WHITE),
        (plain((100, 255), mode="LA"), (100, 100, 100)),
        (plain((9, 9, 9, 0), mode="RGBA"), WHITE),
        (plain((0, 0, 255, 255), mode="RGBA"), BLUE),
        (plain((0, 0, 255, 51), mode="RGBA"), (204, 204, 255)),  # a fifth of blue on white
        (plain(BLUE).convert("P"), BLUE),
        (plain(257 * 100, mode="I;16"), (100, 100, 100)),
        (plain(65535, mode="I;16"), WHITE),
    ],
    ids=["grey", "one bit", "grey-alpha", "clear", "opaque", "half", "palette", "16", "16 white"],
)
def test_every_mode_becomes_colours(tmp_path, image, expected):
    found = load_captioned_folder(write(tmp_path, {"a.png": image}))
    assert found.pixels.shape == (1, 3, 32, 32)
    assert found.pixels.dtype == torch.uint8
    assert all(abs(a - b) <= 1 for a, b in zip(pixel(found.pixels), expected))


def test_a_palette_with_a_clear_colour(tmp_path):
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.info["transparency"] = 1
    assert pixel(load_captioned_folder(write(tmp_path, {"a.png": image})).pixels) == WHITE


def test_cmyk_of_a_printer(tmp_path):
    image = plain((0, 255, 255, 0), mode="CMYK")
    found = load_captioned_folder(write(tmp_path, {"a.jpg": image}))
    assert all(abs(a - b) < 8 for a, b in zip(pixel(found.pixels), RED))


def test_the_middle_is_cut_out(tmp_path):
    """96 x 32: blue, red, blue; 32 x 96 alike."""
    wide = plain(BLUE, (96, 32))
    wide.paste(RED, (32, 0, 64, 32))
    images = {"wide.png": wide, "high.png": wide.transpose(Image.Transpose.ROTATE_90)}
    pixels = load_captioned_folder(write(tmp_path, images)).pixels
    assert torch.equal(
        pixels, torch.tensor(RED).to(pixels)[None, :, None, None].expand(2, 3, 32, 32)
    )


@pytest.mark.parametrize("side", [1, 31, 33, 101])
def test_odd_sizes(tmp_path, side):
    images = {"a.png": plain(RED, (side, side + 6))}
    found = load_captioned_folder(write(tmp_path, images), size=16)
    assert found.pixels.shape == (1, 3, 16, 16)
    assert pixel(found.pixels, 0, 8, 8) == RED


def test_resizing_averages(tmp_path):
    """Stripes one pixel wide become grey, and no pattern (aliasing)."""
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    found = load_captioned_folder(write(tmp_path, {"a.png": Image.fromarray(stripes)}))
    assert (found.pixels[..., 2:-2].float() - 127.5).abs().max() < 2


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))]
)
def test_the_cameras_rotation_is_carried_out(tmp_path, orientation, corner):
    image = plain(WHITE)
    image.paste(RED, (0, 0, 8, 8))  # above, left
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    pixels = load_captioned_folder(
        write(tmp_path, {"a.png": (tmp_path / "a.png").read_bytes()})
    ).pixels
    assert pixel(pixels, 0, *corner) == RED
    assert (pixels[0, 1] == 0).sum() == 64


# --- what is refused ---


def line(name="a.png", text="a circle"):
    return json.dumps({"file_name": name, "text": text})


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([line(), '{"file_name": "b.png", "text"'], r"line 2 of metadata\.jsonl: no JSON \(Expecting"),
        ([line(), "", '["a.png"]'], "line 3 .*: no {"),
        (['{"text": "a circle"}'], 'line 1 .*: has no "file_name", only text'),
        (['{"file_name": "a.png", "caption": "a circle"}'], 'no "text", only file_name, caption'),
        (["{}"], 'has no "file_name", only nothing'),
        ([line(text=3)], '"text" is 3, expected some text'),
        ([line(text=None)], '"text" is None, expected some text'),
        ([line(text=" ")], "\"text\" is ' ', expected some text"),
        ([line(name="")], "\"file_name\" is '', expected some text"),
        ([line(name="z.png")], r"line 1 .*: z\.png does not exist"),
        ([line(), line()], r"line 2 .*: a\.png has a line already"),
        ([line(name="../a.png")], r"\.\./a\.png lies outside the folder"),
        ([line(name="/etc/a.png")], "lies outside the folder"),
        (["", ""], r"metadata\.jsonl names no image"),
    ],
)  # fmt: skip
def test_lines_that_cannot_be_used(tmp_path, lines, says):
    with pytest.raises(UsageError, match=says):
        load_captioned_folder(write(tmp_path, {"a.png": plain()}, lines))


def test_all_bad_lines_are_listed_at_once(tmp_path):
    lines = [line(), "{", line(name="z.png"), line(text="")]
    with pytest.raises(UsageError, match=r"line 2 .*line 3 .*line 4 "):
        load_captioned_folder(write(tmp_path, {"a.png": plain()}, lines))


def test_a_long_list_is_cut(tmp_path):
    with pytest.raises(UsageError, match=r"line 5 .*; and 4 more$"):
        load_captioned_folder(write(tmp_path, {"a.png": plain()}, ["{"] * 9))


def test_no_folder_and_no_captions(tmp_path):
    with pytest.raises(FileNotFoundError, match="none is not a folder"):
        load_captioned_folder(tmp_path / "none")
    plain().save(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r'metadata\.jsonl does not exist; .*"file_name"'):
        load_captioned_folder(tmp_path)


def test_captions_in_another_encoding(tmp_path):
    write(tmp_path, {"a.png": plain()})
    (tmp_path / "metadata.jsonl").write_bytes('{"text": "ü"}'.encode("latin-1"))
    with pytest.raises(UsageError, match=r"metadata\.jsonl is no text in UTF-8"):
        load_captioned_folder(tmp_path)


def test_all_broken_images_are_listed_at_once(tmp_path):
    plain(size=(64, 64)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "whole.jpg")
    images = {
        "whole.png": whole,
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": (tmp_path / "whole.jpg").read_bytes()[:1000],
        "empty.png": b"",
        "text.png": b"not an image",
    }
    (tmp_path / "whole.jpg").unlink()
    with pytest.raises(UsageError) as caught:
        load_captioned_folder(write(tmp_path, images))
    for name in ("cut.png", "cut.jpg", "empty.png", "text.png"):
        assert f"{name} cannot be read (" in str(caught.value)
    assert "whole.png" not in str(caught.value)


def test_real_numbers_as_pixels(tmp_path):
    with pytest.raises(UsageError, match=r"a\.tiff cannot be read .*8 or 16 bits"):
        load_captioned_folder(write(tmp_path, {"a.tiff": plain(0.5, mode="F")}))


def test_images_without_a_line(tmp_path):
    images = {"a.png": plain(), "b.JPG": plain(), "sub/c.webp": plain()}
    with pytest.raises(UsageError, match=r"b\.JPG has no line in .*; sub/c\.webp has no line"):
        load_captioned_folder(write(tmp_path, images, [line()]))


@pytest.mark.parametrize("size", [0, -4])
def test_size(tmp_path, size):
    with pytest.raises(UsageError, match=r"size = .* must be at least 1"):
        load_captioned_folder(tmp_path, size)


# --- what is written ---


ONE = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("pixels", "captions", "says"),
    [
        (ONE, ["a", "b"], "1 images and 2 captions"),
        (ONE[:0], [], "0 images and 0 captions"),
        (ONE, [" "], r"the captions \[0\] are empty"),
        (ONE.float(), ["a"], r"\(1, 3, 4, 4\) torch.float32 must be"),
        (ONE[:, :1], ["a"], r"\(1, 1, 4, 4\) .*must be \(N, 3, H, W\)"),
        (ONE[0], ["a"], r"\(3, 4, 4\)"),
    ],
)
def test_what_cannot_be_written(tmp_path, pixels, captions, says):
    with pytest.raises(UsageError, match=says):
        save_captioned_folder(tmp_path / "f", pixels, captions)
    assert not (tmp_path / "f").exists()


def test_other_images_in_the_way(tmp_path):
    save_captioned_folder(tmp_path, ONE.expand(2, -1, -1, -1), ["a", "b"])
    save_captioned_folder(tmp_path, ONE.expand(2, -1, -1, -1), ["c", "d"])
    assert load_captioned_folder(tmp_path, 4).captions == ["c", "d"]
    with pytest.raises(FileExistsError, match=r"other images \(0001\.png\); choose another folder"):
        save_captioned_folder(tmp_path, ONE, ["e"])
    assert load_captioned_folder(tmp_path, 4).captions == ["c", "d"]


def test_the_captions_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no room")

    save_captioned_folder(tmp_path, ONE, ["before"])
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match=r"metadata\.jsonl could not be written \(no room\)"):
        save_captioned_folder(tmp_path, ONE, ["after"])
    assert load_captioned_folder(tmp_path, 4).captions == ["before"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []
