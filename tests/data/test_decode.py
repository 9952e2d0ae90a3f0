"""Decoding, crops and views: against Pillow, torchvision's definitions written out, and a corpus of odd images."""

import collections
import io
import math
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_image

from resnet_jax.data import crops
from resnet_jax.data.crops import Box, center_box, random_resized_box, scale_jitter_box
from resnet_jax.data.decode import CorruptImage, crop_and_resize, decode, decode_crop

CHINA = load_sample_image("china.jpg")  # (427, 640, 3)
PHOTO = np.asarray(Image.fromarray(CHINA).resize((500, 375), Image.Resampling.BICUBIC))


def encoded(image=PHOTO, form="JPEG", mode=None, **settings):
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    with io.BytesIO() as file:
        (picture.convert(mode) if mode else picture).save(file, form, **settings)
        return file.getvalue()


def by_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def crop_of(data, box, size):
    out = np.empty((size, size, 3), np.uint8)
    decode_crop(data, lambda height, width: box, out)
    return out


def with_exif_turn():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    return encoded(exif=exif.tobytes())


def with_thumbnail():
    exif = Image.Exif()
    exif[0x010E] = "a description, and then another JPEG: " + encoded(PHOTO[:16, :16]).hex()
    return encoded(exif=exif.tobytes())


SMALL = PHOTO[::5, ::5]
ODD = {  # decoded as Pillow decodes them
    "baseline": encoded(),
    "progressive": encoded(progressive=True),
    "optimized": encoded(optimize=True),
    "restart markers": encoded(restart_marker_blocks=4),
    "4:4:4": encoded(subsampling="4:4:4"),
    "4:2:2": encoded(subsampling="4:2:2"),
    "grey JPEG": encoded(mode="L"),
    "CMYK JPEG": encoded(mode="CMYK"),
    "quality 1": encoded(quality=1),
    "quality 100": encoded(quality=100),
    "turned by EXIF": with_exif_turn(),
    "long metadata": with_thumbnail(),
    "fill bytes before a marker": encoded()[:2] + b"\xff\xff" + encoded()[2:],
    "a comment": encoded(comment=b"\xff\xc0 no frame, \xff\xd9 no end"),
    "one pixel": encoded(PHOTO[:1, :1]),
    "one row": encoded(PHOTO[:1]),
    "one column": encoded(PHOTO[:, :1]),
    "odd sides": encoded(PHOTO[:37, :53]),
    "bytes after the end": encoded() + b"\0\0 trailing",
    "no Huffman tables, which are the usual ones": encoded().replace(b"\xff\xc4", b"\xff\xee"),
    "PNG": encoded(form="PNG"),
    "PNG with alpha": encoded(SMALL, "PNG", mode="RGBA"),
    "PNG with a palette": encoded(SMALL, "PNG", mode="P"),
    "transparent PNG with a palette": encoded(SMALL, "PNG", mode="P", transparency=0),
    "grey PNG": encoded(SMALL, "PNG", mode="L"),
    "grey PNG with alpha": encoded(SMALL, "PNG", mode="LA"),
    "black and white PNG": encoded(SMALL, "PNG", mode="1"),
    "PNG called JPEG": encoded(SMALL, "PNG"),  # ImageNet has one: a name says nothing
    "GIF": encoded(SMALL, "GIF"),
    "animated GIF": encoded(SMALL, "GIF", save_all=True, append_images=[Image.fromarray(255 - SMALL)]),
    "BMP": encoded(SMALL, "BMP"),
    "TIFF": encoded(SMALL, "TIFF"),
    "WebP": encoded(SMALL, "WEBP"),
    "PPM": encoded(SMALL, "PPM"),
}


def huge_header(width=60000, height=60000):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def with_header(data, height, width):
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


CORRUPT = {
    "empty": b"",
    "one byte": b"\xff",
    "text": b"<html>404 Not Found</html>",
    "zeros": bytes(10_000),
    "noise": np.random.default_rng(0).bytes(10_000),
    "JPEG header alone": encoded()[:300],
    "half a JPEG": encoded()[: len(encoded()) // 2],
    "half a progressive JPEG": encoded(progressive=True)[:9000],
    "nine tenths of a JPEG": encoded()[: len(encoded()) * 9 // 10],
    "half a PNG": encoded(form="PNG")[:50_000],
    "half a GIF": encoded(SMALL, "GIF")[:2000],
    "half a WebP": encoded(SMALL, "WEBP")[:1000],
    "half a TIFF": encoded(SMALL, "TIFF")[:5000],
    "PNG with a wrong checksum": encoded(SMALL, "PNG").replace(b"IDAT", b"IDAt", 1),
    "JPEG without its last bytes": encoded()[:-2],
    "JPEG with no quantisation tables": encoded().replace(b"\xff\xdb", b"\xff\xee"),
    "JPEG of no rows": with_header(encoded(), 0, 500),
    "JPEG of too many pixels": with_header(encoded(), 65500, 65500),
    "PNG of too many pixels": huge_header(),
    "PDF": b"%PDF-1.4\n" + bytes(1000),
}


def test_the_corpus_is_as_large_as_promised():
    assert len(ODD) + len(CORRUPT) >= 30


@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_decoded_as_pillow_does(name):
    np.testing.assert_array_equal(decode(ODD[name]), by_pillow(ODD[name]))


@pytest.mark.parametrize("name", ODD)
def test_a_crop_of_an_odd_image_is_a_crop_of_the_whole(name):
    whole = by_pillow(ODD[name])
    height, width = whole.shape[:2]
    box = Box(height // 3, width // 5, max(1, height // 2), max(1, width // 2))
    expected = np.empty((24, 24, 3), np.uint8)
    # Boxes so large are decoded at a fraction of the resolution: the truth is then the mean over so many pixels.
    shrink = next(factor for factor in (8, 4, 2, 1) if factor <= max(1, min(box.height, box.width) // 24))
    is_jpeg = ODD[name].startswith(b"\xff\xd8") and ODD[name].endswith(b"\xff\xd9") and name != "CMYK JPEG"
    if is_jpeg and shrink > 1:
        small = Image.fromarray(whole).reduce(shrink)
        crop_and_resize(np.asarray(small), Box(*(side // shrink for side in box)), expected)
    else:
        crop_and_resize(whole, box, expected)
    difference = np.abs(crop_of(ODD[name], box, 24).astype(int) - expected)
    assert difference.mean() < 3  # the quick transform, colours not smoothed


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_images_are_told_apart_whole_and_cropped(name):
    with pytest.raises(CorruptImage):
        decode(CORRUPT[name])
    with pytest.raises(CorruptImage):
        crop_of(CORRUPT[name], Box(0, 0, 1, 1), 8)


def test_images_of_16_bits_are_scaled_to_8():
    grey = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    np.testing.assert_array_equal(decode(encoded(grey, "PNG"))[..., 0], grey // 256)


@pytest.mark.parametrize("rows", [1, 7, 8, 16, 17, 200, 374, 375])
def test_decoding_that_ends_with_the_box_gives_the_pixels_of_the_whole(rows):
    for data in (ODD["baseline"], ODD["4:4:4"], ODD["4:2:2"], ODD["restart markers"], ODD["long metadata"]):
        whole = simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True)
        side = min(rows, 8)
        box = Box(rows - side, 100, side, side)
        np.testing.assert_array_equal(crop_of(data, box, side), whole[rows - side : rows, 100 : 100 + side])


def drawn(seed):
    return np.random.default_rng(seed).random((crops.DRAWS, 4))


def torchvision_box(draws, height, width, area):
    """RandomResizedCrop.get_params, written out with the draws of ours."""
    for share, shape, down, right in draws:
        target = height * width * (area[0] + share * (area[1] - area[0]))
        ratio = math.exp(math.log(3 / 4) + shape * (math.log(4 / 3) - math.log(3 / 4)))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(down * (height - h + 1)), int(right * (width - w + 1)), h, w)
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return Box((height - h) // 2, (width - w) // 2, h, w)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (10, 1000), (1000, 10), (1, 1), (333, 333)])
def test_random_resized_boxes_are_torchvisions(height, width):
    for seed in range(200):
        box = random_resized_box(drawn(seed), height, width)
        assert box == torchvision_box(drawn(seed), height, width, (0.08, 1.0))
        assert 0 <= box.top <= height - box.height and 0 <= box.left <= width - box.width


def test_random_resized_boxes_cover_shares_and_ratios_evenly():
    boxes = [random_resized_box(drawn(seed), 4000, 4000) for seed in range(4000)]
    shares = np.array([box.height * box.width / 16e6 for box in boxes])
    small = shares[shares < 0.5]  # of these every ratio fits
    assert abs(np.mean(small < 0.29) - 0.5) < 0.03
    ratios = np.log([box.width / box.height for box in boxes])[shares < 0.5] / math.log(4 / 3)
    assert abs(np.mean(ratios)) < 0.03 and abs(np.mean(np.abs(ratios)) - 0.5) < 0.02
    assert 0.08 <= shares.min() < 0.082 and shares.max() > 0.9


def test_scale_jitter_is_a_crop_of_the_resized_image():
    sides = collections.Counter(scale_jitter_box(drawn(seed), 400, 500, size=224).height for seed in range(3000))
    assert min(sides) == round(224 * 400 / 480) and max(sides) == round(224 * 400 / 256)
    assert scale_jitter_box(drawn(0), 20, 30, size=224, short_sides=(100, 100)).height == 20


def test_the_centre_is_the_largest_central_square():
    assert center_box(None, 375, 500) == Box(0, 62, 375, 375)
    assert center_box(None, 500, 375) == Box(62, 0, 375, 375)


# --- evaluation ---


def pillow_view(image, size, resize, form):
    """torchvision's Resize and CenterCrop on a Pillow image, written out."""
    picture = Image.fromarray(image)
    width, height = picture.size
    short, long = resize, int(resize * max(width, height) / min(width, height))
    picture = picture.resize((long, short) if width >= height else (short, long), form)
    top, left = round((picture.height - size) / 2), round((picture.width - size) / 2)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(("interpolation", "form"), [("bilinear", 2), ("bicubic", 3)])
@pytest.mark.parametrize("image", [PHOTO, PHOTO.transpose(1, 0, 2), PHOTO[:200, :131]], ids=["wide", "high", "small"])
@pytest.mark.parametrize("crop_fraction", [0.875, 0.95, 0.97, 1.0])
def test_the_central_view_is_pillows(image, interpolation, form, crop_fraction):
    settings = {"size": 224, "crop_fraction": crop_fraction, "interpolation": interpolation}
    view = crops.center_view(image, **settings)
    expected = pillow_view(image, 224, round(224 / crop_fraction), Image.Resampling(form))
    assert np.abs(view.astype(int) - expected).mean() < 1
    np.testing.assert_array_equal(view, expected)
    np.testing.assert_array_equal(crops.EVALUATION_VIEWS["center"](image, **settings), [expected])


def test_ten_crops_are_the_corners_the_centre_and_their_mirror_images():
    resized = np.asarray(Image.fromarray(PHOTO).resize((341, 256), Image.Resampling.BILINEAR))
    views = crops.ten_crop(PHOTO, size=224, crop_fraction=0.875, interpolation="bilinear")
    corners = [resized[top : top + 224, left : left + 224] for top in (0, 32) for left in (0, 117)]
    expected = [*corners, resized[16:240, 58:282]]
    np.testing.assert_array_equal(views, [*expected, *(crop[:, ::-1] for crop in expected)])


def test_several_scales_take_the_whole_image():
    views = crops.multi_scale(PHOTO, interpolation="bilinear")
    assert [view.shape for view in views] == [
        (224, 288, 3),
        (256, 352, 3),
        (384, 512, 3),
        (480, 640, 3),
        (640, 864, 3),
    ]
    high = crops.multi_scale(PHOTO.transpose(1, 0, 2), interpolation="bilinear")
    assert [view.shape[1::-1] for view in high] == [view.shape[:2] for view in views]
