"""From images of any kind to model input, against Pillow and NumPy."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from resnet_jax import UserError
from resnet_jax.data.preprocessing import Preprocessing, mean_image

PHOTO = load_sample_image("china.jpg")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = Preprocessing(32, 0.8, "bilinear", "RGB", MEAN, STD)
DIGITS = Preprocessing(8, None, "bilinear", "L", (0.3,), (0.4,))


def by_pillow(photo):
    height, width = photo.shape[:2]
    short = min(height, width)
    resized = np.asarray(Image.fromarray(photo).resize((40 * width // short, 40 * height // short), 2))
    top, left = (round((side - 32) / 2) for side in resized.shape[:2])
    return (resized[top : top + 32, left : left + 32] / np.float32(255) - np.float32(MEAN)) / np.float32(STD)


def test_a_photograph_is_resized_cropped_and_normalised(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(path)
    forms = [PHOTO, PHOTO[None], Image.fromarray(PHOTO), path, str(path), [path]]
    for form in forms:
        found = IMAGENET(form)
        assert found.shape == (1, 32, 32, 3)
        np.testing.assert_allclose(found[0], by_pillow(PHOTO), rtol=1e-5, atol=1e-6)


def test_images_of_several_sizes_make_one_batch():
    found = IMAGENET([PHOTO, PHOTO[:100, :90], Image.fromarray(PHOTO[::2])])
    assert found.shape == (3, 32, 32, 3)
    np.testing.assert_allclose(found[1], by_pillow(PHOTO[:100, :90]), rtol=1e-5, atol=1e-6)


def test_images_of_the_stored_size_are_taken_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    expected = (images / np.float32(255) - np.float32(0.3)) / np.float32(0.4)
    np.testing.assert_allclose(DIGITS(images), expected, rtol=1e-5)
    np.testing.assert_allclose(DIGITS(images[0, ..., 0])[0], expected[0], rtol=1e-5)


def test_a_photograph_for_a_grey_net_is_made_grey_and_small():
    grey = np.asarray(Image.fromarray(DIGITS.views(np.repeat(PHOTO[:400, :400, :1], 3, axis=-1))[0][..., 0]))
    expected = np.asarray(Image.fromarray(PHOTO[:400, :400, 0]).resize((8, 8), 2))
    np.testing.assert_allclose(grey.astype(int), expected.astype(int), atol=1)
    assert DIGITS(PHOTO).shape == (1, 8, 8, 1)


def test_the_mean_image_is_subtracted_exactly_after_a_trip_through_json():
    import json

    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    stored = json.loads(json.dumps(mean_image(images)))
    preprocess = Preprocessing(8, None, "bilinear", "RGB", MEAN, STD, mean_image=stored)
    exact = np.float32(images.mean(axis=0, dtype=np.float64) / 255)
    np.testing.assert_allclose(preprocess(images), images / np.float32(255) - exact, atol=1e-6)
    assert np.abs(np.asarray(preprocess(images)).mean(axis=0)).max() < 1e-6
    np.testing.assert_array_equal(np.float32(stored), exact)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PHOTO.astype(np.float32), "images: expected uint8 .* found float32"),
        (np.zeros((4, 4, 2), np.uint8), r"found uint8 \(4, 4, 2\); several images are"),
        (np.zeros((0, 8, 3), np.uint8), r"found uint8 \(0, 8, 3\)"),
        ([], "images: expected at least one, found none"),
        ("/nowhere.jpg", "/nowhere.jpg cannot be read: No such file"),
        (__file__, "cannot be decoded"),
    ],
)
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(UserError, match=message):
        IMAGENET(images)
