"""Image files on the command line: which are found, what becomes of odd ones, and the memory that it takes."""

import json
import os
import pathlib
import subprocess
import sys
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from resnet_jax import train
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.environment import num_cpus
from resnet_jax.evaluation.images import MAX_PIXELS, find_images, read_views
from tests.data.test_decode import CORRUPT, ODD, SMALL, by_pillow, encoded, huge_header, pillow_view, with_header
from tests.runs import ROOT
from tests.tiny import tiny_config

PREPROCESSING = Preprocessing(24, 0.75, "bilinear", "RGB", (0, 0, 0), (1, 1, 1))


@pytest.fixture
def files(tmp_path, monkeypatch):
    for name in ("b.jpg", "a.PNG", "notes.txt", "sub/c.webp", "sub/deep/d.gif", ".hidden.jpg", ".git/e.jpg", "[x].jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"any")
    (tmp_path / "photos" / "sub" / "again").symlink_to(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


ALL = ["photos/[x].jpg", "photos/a.PNG", "photos/b.jpg", "photos/sub/c.webp", "photos/sub/deep/d.gif"]


def test_folders_are_searched_through_and_sorted_and_files_are_taken_as_they_are(files):
    assert list(find_images(["photos"])) == [(path, "") for path in ALL]
    through_the_link = [path.replace("photos", "photos/sub/again") for path in ALL[:3]]  # but not in circles
    assert [path for path, _ in find_images(["photos/notes.txt", "photos/b.jpg", "photos/sub", "photos/b.jpg"])] == [
        "photos/notes.txt", "photos/b.jpg", ALL[3], *through_the_link, ALL[4], "photos/b.jpg",
    ]  # fmt: skip


def test_patterns_match_files_and_folders(files):
    def found(*names):
        return [path for path, problem in find_images(names) if not problem]

    assert found("photos/?.*") == ["photos/a.PNG", "photos/b.jpg"]
    assert found("photos/*.jpg") == ["photos/[x].jpg", "photos/b.jpg"]
    assert found("photos/[x].jpg") == ["photos/[x].jpg"]  # a file of this very name
    assert found("photos/s*/deep") == ["photos/sub/deep/d.gif"]
    assert found("pho*") == ALL
    assert found("photos/sub/deep/**") == ["photos/sub/deep/d.gif"]  # once, though the folder matches, too


def test_names_that_stand_for_nothing_are_problems(files):
    names = ["photos/nothing.jpg", "empty", "photos/*.tiff", "photos/a.PNG"]
    assert list(find_images(names)) == [
        ("photos/nothing.jpg", "no such file"),
        ("empty", "the folder has no images"),
        ("photos/*.tiff", "no file matches"),
        ("photos/a.PNG", ""),
    ]


def test_a_folder_that_cannot_be_read_is_a_problem_and_the_others_are_found(files, as_nobody):
    (files / "photos" / "sub" / "deep").chmod(0)
    with as_nobody(files):
        found = list(find_images(["photos"]))
    (files / "photos" / "sub" / "deep").chmod(0o755)
    assert found == [*[(path, "") for path in ALL[:-1]], ("photos/sub/deep", "Permission denied")]


def views_of(folder, contents):
    """The views of files with these contents, by name."""
    for name, content in contents.items():
        (folder / f"{name.replace('/', ' ')}.jpg").write_bytes(content)
    views = list(read_views(find_images([str(folder)]), PREPROCESSING, ahead=3))
    assert [view.path for view in views] == sorted(str(path) for path in folder.iterdir())
    return {pathlib.Path(view.path).stem: view for view in views}


def test_odd_images_are_seen_as_evaluation_sees_them(tmp_path):
    views = views_of(tmp_path, ODD)
    for name, data in ODD.items():
        path, pixels, problem = views[name]
        if min(by_pillow(data).shape[:2]) * 100 < max(by_pillow(data).shape[:2]):
            assert pixels is None and "one side is more than 100 times the other" in problem
            continue
        assert problem == ""
        np.testing.assert_array_equal(pixels, pillow_view(by_pillow(data), 24, 32, 2), err_msg=name)
        np.testing.assert_allclose(PREPROCESSING(path), pixels[None] / np.float32(255), atol=1e-6)


def test_the_rules_for_odd_images_are_those_of_the_help(tmp_path):
    red, blue = np.zeros((2, 32, 32, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    clear = Image.fromarray(np.dstack([red, np.zeros((32, 32), np.uint8)]))
    turned = Image.Exif()
    turned[0x0112] = 6
    half = red.copy()
    half[16:] = 0
    cases = {
        "the first frame": (encoded(red, "GIF", save_all=True, append_images=[Image.fromarray(blue)]), red),
        "without transparency": (encoded(clear, "PNG"), red),
        "as stored": (encoded(half, "PNG", exif=turned), half),
        "16 bits": (encoded(np.full((32, 32), 0x80FF, np.uint16), "PNG"), np.full((32, 32, 3), 0x80)),
        "a palette": (encoded(red, "PNG", mode="P"), red),
        "grey": (encoded(red, "PNG", mode="L"), np.full((32, 32, 3), 76)),
        "one pixel": (encoded(blue[:1, :1], "PNG"), blue),
        "CMYK": (encoded(red, mode="CMYK", quality=100), red),
    }
    views = views_of(tmp_path, {name: data for name, (data, _) in cases.items()})
    for name, (_, expected) in cases.items():
        assert views[name].problem == "", name
        np.testing.assert_allclose(views[name].pixels, expected[4:28, 4:28], atol=3, err_msg=name)


def test_corrupt_images_are_problems_of_one_line(tmp_path):
    views = views_of(tmp_path, CORRUPT)
    assert len(views) == len(CORRUPT)
    for name, view in views.items():
        assert view.pixels is None and view.problem and "\n" not in view.problem, name
    assert views["empty"].problem == "it is empty"
    assert views["text"].problem == "it is no image of a known format"
    assert "truncated" in views["half a JPEG"].problem


def test_what_is_no_file_is_a_problem_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")
    problems = {
        pathlib.Path(v.path).name: v.problem for v in read_views(find_images([str(tmp_path)]), PREPROCESSING, 0)
    }
    assert problems == {"pipe.jpg": "not a regular file", "link.jpg": "No such file or directory"}


def test_images_that_take_too_much_memory_are_problems(tmp_path):
    side = int(MAX_PIXELS**0.5)
    long, just = (encoded(np.zeros((1, length, 3), np.uint8), "PNG") for length in (101, 100))
    contents = {"large": huge_header(side + 1, side), "at the limit": huge_header(side, side), "long": long}
    jpeg = simplejpeg.encode_jpeg(np.zeros((side, side + 1, 1), np.uint8), colorspace="GRAY")  # a complete one
    problems = {
        name: view.problem for name, view in views_of(tmp_path, contents | {"just": just, "JPEG": jpeg}).items()
    }
    assert problems["large"] == problems["JPEG"] == f"{side + 1}x{side} pixels are more than {MAX_PIXELS:,}"
    assert "pixels" not in problems["at the limit"]  # it is decoded, and ends early
    assert problems["long"] == "101x1 pixels: one side is more than 100 times the other" and problems["just"] == ""


def test_files_are_read_ahead_but_not_all_of_them(tmp_path):
    (tmp_path / "a.jpg").write_bytes(ODD["PNG"])
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield from find_images([str(tmp_path / "a.jpg")])

    views = read_views(endless(), PREPROCESSING, ahead=5)
    for count in range(1, 20):
        assert not next(views).problem and len(asked) == count + 5
    views.close()


_CHILD = """
import contextlib, io, json, pathlib, sys
import tests.tiny
from resnet_jax.predict import main

status, out = 0, io.StringIO()
try:
    with contextlib.redirect_stdout(out):
        main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
peak = pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]  # ru_maxrss is also its parent's
print(json.dumps({"status": status, "rows": out.getvalue().count("\\n"), "megabytes": int(peak) / 1000}))
"""


def predict_in_child(*arguments):
    if not os.path.exists("/proc/self/status"):
        pytest.skip("this needs Linux, which tells a process its largest memory")
    command = [sys.executable, "-c", _CHILD, *map(str, arguments), "--format=json"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return json.loads(found.stdout), found.stderr


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train(tiny_config(train__steps=2), workdir)
    return workdir


def png_bomb(side):
    """A complete PNG of so many white pixels squared."""
    packer, row = zlib.compressobj(1), b"\0" + b"\xff" * side
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    empty = huge_header(side, side)

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = empty[16:24] + b"\x08\0\0\0\0"
    return empty[:8] + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.slow
def test_bombs_and_photographs_of_many_pixels_take_less_than_500_megabytes(digits_run, tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_bomb(20_000))
    (tmp_path / "bomb.jpg").write_bytes(with_header(encoded(), 20_000, 20_000))
    (tmp_path / "one.jpg").write_bytes(encoded(np.zeros((1, 65_000, 3), np.uint8)))
    large = encoded(np.zeros((4500, 5500, 3), np.uint8))
    for index in range(2 * num_cpus()):
        (tmp_path / f"large{index}.jpg").write_bytes(large)
    for name in ("CMYK JPEG", "animated GIF", "transparent PNG with a palette", "PNG with alpha", "turned by EXIF"):
        (tmp_path / f"{name}.jpg").write_bytes(ODD[name])
    found, skipped = predict_in_child(digits_run, tmp_path)
    assert found["status"] == 3 and found["rows"] == 2 * num_cpus() + 5, skipped
    assert [line.split(":")[0] for line in skipped.splitlines() if line.startswith("skipped")] == [
        f"skipped {tmp_path}/{name}" for name in ("bomb.jpg", "bomb.png", "one.jpg")
    ]
    assert found["megabytes"] < 500


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(digits_run, tmp_path):
    peaks = []
    for count in (100, 4000):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "0.png").write_bytes(encoded(SMALL, "PNG"))
        for index in range(1, count):
            os.link(folder / "0.png", folder / f"{index}.png")
        found, _ = predict_in_child(digits_run, folder)
        assert found["rows"] == count and found["status"] == 0
        peaks.append(found["megabytes"])
    assert peaks[1] < peaks[0] + 20, peaks  # pixels, views and rows of 4,000 are more
