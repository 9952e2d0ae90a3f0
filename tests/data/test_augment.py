import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data import augment

KEY = jax.random.key(0)
OFF = {"pad_crop": 0, "flip": False, "cutout": 0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
IMAGES = jax.random.normal(KEY, (64, 12, 12, 3))
POSITIONS = jnp.arange(64)


def augmented(images=IMAGES, positions=POSITIONS, **strengths):
    return np.asarray(augment.augment_images(KEY, images, positions, OFF | strengths))


def mixed(images, targets, positions, **strengths):
    return augment.mix_images(KEY, images, targets, positions, OFF | strengths)


def test_normalize_equals_numpy():
    images = np.random.default_rng(0).integers(256, size=(4, 6, 6, 3), dtype=np.uint8)
    mean, std = np.float32([[[[0.5, 0.4, 0.3]]]]), np.float32([[[[0.2, 0.3, 0.4]]]])
    np.testing.assert_allclose(augment.normalize(images, mean, std), (images / 255 - mean) / std, rtol=1e-5, atol=1e-6)


def test_resizing_is_bilinear_with_half_pixel_centres():
    row = np.uint8([[0, 255]])[None, :, :, None]
    resized = augment.normalize(row, np.float32(0), np.float32(1), size=4)
    np.testing.assert_allclose(resized[0, 0, :, 0], [0, 0.25, 0.75, 1], atol=1e-6)


def test_nothing_happens_when_all_is_off():
    np.testing.assert_array_equal(augmented(), IMAGES)
    targets = jax.nn.one_hot(jnp.arange(64) % 10, 10)
    images, same = mixed(IMAGES, targets, POSITIONS)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(same, targets)


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_others():
    flipped = augmented(flip=True)
    mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, IMAGES, strict=True)])
    same = np.array([np.array_equal(a, b) for a, b in zip(flipped, IMAGES, strict=True)])
    assert np.all(mirrored ^ same)
    assert 16 < mirrored.sum() < 48


def test_pad_crop_is_a_window_of_the_padded_image_and_reaches_every_offset():
    cropped = augmented(images=jnp.tile(IMAGES[:1], (512, 1, 1, 1)), positions=jnp.arange(512), pad_crop=2)
    padded = np.pad(IMAGES[0], ((2, 2), (2, 2), (0, 0)))
    windows = {padded[t : t + 12, s : s + 12].tobytes(): (t, s) for t in range(5) for s in range(5)}
    assert {windows[image.tobytes()] for image in cropped} == set(windows.values())


def test_cutout_zeroes_one_square_clipped_at_the_border():
    holes = np.all(augmented(cutout=4) == 0, axis=-1)
    for hole in holes:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns)  # a rectangle
        assert 2 <= len(rows) <= 4
        assert 2 <= len(columns) <= 4
    assert holes.sum((1, 2)).max() == 16
    assert np.all(holes.any(0))  # every pixel can be hit


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_targets_are_mixed_in_the_share_of_the_images(mix):
    images = jnp.arange(64.0).reshape(64, 1, 1, 1) * jnp.ones((1, 16, 16, 1))  # each image is its number
    targets = jax.nn.one_hot(jnp.arange(64), 64)
    mixed_images, mixed_targets = mixed(images, targets, jnp.arange(64), **{mix: 1.0})
    partner = np.arange(64) ^ 1
    share = np.asarray(mixed_targets)[np.arange(64), np.arange(64)]
    np.testing.assert_allclose(np.asarray(mixed_targets)[np.arange(64), partner], 1 - share, atol=1e-6)
    expected = share * np.arange(64) + (1 - share) * partner
    np.testing.assert_allclose(mixed_images.mean((1, 2, 3)), expected, rtol=1e-5)
    assert share.min() < 0.2
    assert share.max() > 0.8
    pure = np.isin(np.asarray(mixed_images), np.arange(64)).all((1, 2, 3))
    assert pure.mean() < 0.1 if mix == "mixup" else pure.all()


def test_both_mixes_are_used_when_both_are_on():
    images = jnp.arange(64.0).reshape(64, 1, 1, 1) * jnp.ones((1, 16, 16, 1))
    mixed_images, _ = mixed(images, jax.nn.one_hot(jnp.arange(64), 64), jnp.arange(64), mixup=1.0, cutmix=1.0)
    pure = np.isin(np.asarray(mixed_images), np.arange(64)).all((1, 2, 3))
    assert 0.2 < pure.mean() < 0.8


def test_an_images_fate_does_not_depend_on_how_the_batch_is_shared():
    strengths = {"pad_crop": 2, "flip": True, "cutout": 4}
    halves = [augmented(IMAGES[part], POSITIONS[part], **strengths) for part in (slice(0, 32), slice(32, 64))]
    np.testing.assert_array_equal(np.concatenate(halves), augmented(**strengths))
    targets = jax.nn.one_hot(jnp.arange(64), 64)
    parts = [mixed(IMAGES[p], targets[p], POSITIONS[p], mixup=0.4, cutmix=1.0) for p in (slice(0, 32), slice(32, 64))]
    whole = mixed(IMAGES, targets, POSITIONS, mixup=0.4, cutmix=1.0)
    for index in range(2):
        np.testing.assert_array_equal(np.concatenate([part[index] for part in parts]), whole[index])


def test_images_of_a_batch_are_augmented_each_in_its_own_way():
    same = jnp.tile(IMAGES[:1], (64, 1, 1, 1))
    assert len({image.tobytes() for image in augmented(same, pad_crop=2, flip=True)}) > 20
