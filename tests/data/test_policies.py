"""One torchvision operation after the other, and the statistics of the policies."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.datasets import load_sample_image

from resnet_jax.data import policies
from resnet_jax.data.policies import OPERATIONS, TRIVIAL_AUGMENT_SPACE, auto_augment_space

PHOTO = np.ascontiguousarray(load_sample_image("china.jpg")[::9, ::10])  # uint8 (48, 64, 3)
KEYS = jax.random.split(jax.random.key(0), 4096)
apply_operation = jax.jit(policies.apply_operation)

ENHANCEMENTS = (0.9, -0.9, 0.37, -0.5, 0.99, -0.99, 0)
MAGNITUDES = {
    "Identity": (0, 0.5),
    "ShearX": (0, 0.3, -0.3, 0.99, -0.99),
    "ShearY": (0, 0.3, -0.3, 0.99, -0.99),
    "TranslateX": (0, 10.9, -10.9, 32, -32, 100),
    "TranslateY": (0, 10.9, -10.9, 32, -32, 100),
    "Rotate": (0, 7.5, 30, -30, -90, 135, -135),
    "Brightness": ENHANCEMENTS,
    "Color": ENHANCEMENTS,
    "Contrast": ENHANCEMENTS,
    "Sharpness": ENHANCEMENTS,
    "Posterize": (8, 7, 6, 4, 2),
    "Solarize": (1, 0.5, 0.1, 0),
    "AutoContrast": (0, 0.5),
    "Equalize": (0, 0.5),
    "Invert": (0, 0.5),
}
# Where a value lies at the edge of two levels, the last bit of a float decides: these may be a level apart, in places.
SOMETIMES_A_LEVEL_APART = {"ShearX", "ShearY", "Rotate", "Brightness", "Contrast", "Color", "Sharpness", "AutoContrast"}


@pytest.fixture(scope="module")
def v2():
    pytest.importorskip("tests.models.test_torch_parity")  # knows how to import torchvision, and skips without torch
    return pytest.importorskip("torchvision.transforms.v2")


def to_torch(image):
    import torch

    return torch.tensor(np.asarray(image, np.uint8)).permute(2, 0, 1)


def assert_same_levels(ours, theirs, a_level_apart):
    """Equal whole grey levels, or in at most 3 % of the places a level apart."""
    distance = np.abs(np.asarray(ours) - theirs.permute(1, 2, 0).numpy())
    assert np.all(np.isin(distance, [0, 1]))
    assert np.mean(distance) < (0.03 if a_level_apart else 1e-9)


def torch_operation(v2, image, name, magnitude):
    fill = {type(to_torch(image)): None}
    bilinear = v2.InterpolationMode.BILINEAR
    return v2.AutoAugment()._apply_image_or_video_transform(to_torch(image), name, float(magnitude), bilinear, fill)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_equal_torchvisions(v2, name):
    for magnitude in MAGNITUDES[name]:
        ours = apply_operation(OPERATIONS[name], jnp.float32(PHOTO), jnp.float32(magnitude))
        assert_same_levels(ours, torch_operation(v2, PHOTO, name, magnitude), name in SOMETIMES_A_LEVEL_APART)


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Contrast", "Color"])
def test_images_of_few_levels_are_treated_as_torchvision_treats_them(v2, name):
    image = PHOTO.copy()
    image[..., 0], image[..., 1], image[0, 0, 1] = 7, 200, 100
    ours = apply_operation(OPERATIONS[name], jnp.float32(image), jnp.float32(0.4))
    assert_same_levels(ours, torch_operation(v2, image, name, 0.4), name in SOMETIMES_A_LEVEL_APART)


def test_hue_is_turned_as_in_torchvision(v2):
    adjust_hue = jax.jit(policies.adjust_hue)
    for turn in (0.5, -0.5, 0.1, -0.23, 0):
        theirs = v2.functional.adjust_hue(to_torch(PHOTO), turn)
        assert_same_levels(adjust_hue(jnp.float32(PHOTO), turn), theirs, a_level_apart=True)


@pytest.mark.parametrize("policy, bins", [("AutoAugment", 10), ("RandAugment", 31), ("TrivialAugmentWide", 31)])
def test_magnitudes_span_torchvisions_ranges(v2, policy, bins):
    space = TRIVIAL_AUGMENT_SPACE if policy == "TrivialAugmentWide" else auto_augment_space(48, 64)
    theirs = getattr(v2, policy)._AUGMENTATION_SPACE
    assert set(space) == set(OPERATIONS) == set(theirs) | {"Identity", "Invert"}
    for name, (magnitudes, signed) in theirs.items():
        start, end = space[name]
        expected = magnitudes(bins, 48, 64)
        if expected is None:
            assert (start, end) == (0, 0), name
        else:
            ours = start + (end - start) * np.arange(bins) / (bins - 1)
            np.testing.assert_allclose(np.round(ours) if name == "Posterize" else ours, expected, atol=1e-5)
            assert (start == 0) == signed, name


def test_imagenet_policy_equals_torchvisions(v2):
    expected = [[(name, p, bin_ or 0) for name, p, bin_ in pair] for pair in v2.AutoAugment()._policies]
    assert expected == policies.IMAGENET_POLICY


@pytest.fixture
def record(monkeypatch):
    """A function that gives what a policy would apply for each of KEYS: operations and magnitudes (keys, steps)."""

    def note(operation, image, magnitude):
        return jnp.roll(image, 1, axis=0).at[0, 0].set(jnp.stack([operation, magnitude, 0]))

    def run(policy, steps, *arguments):
        monkeypatch.setattr(policies, "apply_operation", note)
        draw = jax.jit(jax.vmap(lambda key, arguments: policy(key, jnp.zeros((48, 64, 3)), *arguments), (0, None)))
        notes = draw(KEYS, arguments)
        notes = np.asarray(notes[:, :steps, 0, :2])[:, ::-1]  # the last is noted first
        return np.asarray(list(OPERATIONS))[notes[..., 0].astype(int)], notes[..., 1]

    return run


def assert_frequencies(values, expected):
    """Each value as often as expected (a dict of probabilities), within five standard errors."""
    assert set(values) == {value for value, p in expected.items() if p > 0}
    for value, p in expected.items():
        assert abs(np.mean(values == value) - p) <= 5 * np.sqrt(p * (1 - p) / len(values)), value


def expected_magnitudes(space, name, levels):
    start, end = space[name]
    magnitudes = {start + (end - start) * level for level in levels}
    return sorted(magnitudes | {-m for m in magnitudes} if start == 0 else magnitudes)


def rand_augment_twice(key, image, magnitude, magnitude_std):
    return policies.rand_augment(key, image, 2, magnitude, magnitude_std)


def test_rand_augment_draws_its_operations_and_signs_with_equal_chance(record):
    operations, magnitudes = record(rand_augment_twice, 2, 9.0, 0.0)
    uniform = {name: 1 / 14 for name in OPERATIONS if name != "Invert"}
    space = auto_augment_space(48, 64)
    for step in range(2):
        assert_frequencies(operations[:, step], uniform)
    assert_frequencies(operations[:, 0] + operations[:, 1], {a + b: 1 / 14**2 for a in uniform for b in uniform})
    for name in uniform:
        drawn, expected = magnitudes[operations == name], expected_magnitudes(space, name, [9 / 30])
        np.testing.assert_allclose(np.unique(drawn), expected, rtol=1e-5)
        assert len(expected) == 1 or 0.35 < np.mean(drawn > 0) < 0.65


def test_rand_augments_magnitude_is_normal_and_stays_on_the_scale(record):
    operations, magnitudes = record(rand_augment_twice, 2, 25.0, 5.0)
    drawn = np.abs(magnitudes[operations == "Rotate"])  # 0..30 degrees: the scale itself
    expected = np.clip(np.random.default_rng(0).normal(25, 5, 4096), 0, 30)
    assert scipy.stats.ks_2samp(drawn, expected).pvalue > 0.01
    assert drawn.max() < 30.001


def test_trivial_augment_draws_operations_and_magnitudes_with_equal_chance(record):
    operations, magnitudes = record(policies.trivial_augment, 1)
    assert_frequencies(operations[:, 0], {name: 1 / 14 for name in OPERATIONS if name != "Invert"})
    for name in ("ShearX", "Solarize", "Posterize", "Equalize"):
        expected = expected_magnitudes(TRIVIAL_AUGMENT_SPACE, name, np.arange(31) / 30)
        nearest = np.abs(magnitudes[operations == name][:, None] - np.float32(expected)[None])
        assert nearest.min(1).max() < 1e-5
        assert len(set(nearest.argmin(1))) > 0.9 * len(expected)


def test_auto_augment_follows_its_policy(record):
    operations, magnitudes = record(policies.auto_augment, 2)
    for step in range(2):
        expected = dict.fromkeys(OPERATIONS, 0)
        for pair in policies.IMAGENET_POLICY:
            name, p, _ = pair[step]
            expected[name] += p / 25
            expected["Identity"] += (1 - p) / 25
        assert_frequencies(operations[:, step], expected)
        for name in set(operations[:, step]) - {"Identity"}:
            bins = {pair[step][2] / 9 for pair in policies.IMAGENET_POLICY if pair[step][0] == name and pair[step][1]}
            drawn = np.unique(magnitudes[operations[:, step] == name, step])
            np.testing.assert_allclose(drawn, expected_magnitudes(auto_augment_space(48, 64), name, bins), rtol=1e-5)
    pairs = {(pair[0][0], pair[1][0]) for pair in policies.IMAGENET_POLICY}
    drawn = {tuple(pair) for pair in operations if "Identity" not in pair}
    assert drawn <= pairs


def jittered(image, *strengths):
    return np.asarray(jax.jit(jax.vmap(lambda key: policies.color_jitter(key, image, *strengths)))(KEYS))


def test_color_jitter_draws_factors_around_one():
    grey = jnp.full((1, 1, 3), 100.0)
    for strength, low, high in ((0.4, 60, 140), (1.5, 0, 250)):
        levels = jittered(grey, strength, 0, 0, 0)[:, 0, 0, 0]
        assert scipy.stats.kstest(levels, "uniform", (low, high - low)).pvalue > 1e-3
        assert low - 1 <= levels.min() < low + 2
        assert high - 2 < levels.max() <= high
    np.testing.assert_array_equal(jittered(grey, 0, 0, 0, 0), np.tile(grey, (len(KEYS), 1, 1, 1)))


def test_color_jitter_turns_the_hue_both_ways():
    red = jnp.float32([[[200, 50, 50]]])
    hues = np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in jittered(red, 0, 0, 0, 0.1)[:, 0, 0] / 255])
    hues = (hues + 0.5) % 1 - 0.5
    assert scipy.stats.kstest(hues, "uniform", (-0.1, 0.2)).pvalue > 1e-3


def test_color_jitter_adjusts_in_any_order_and_once_each(monkeypatch):
    names = ("Brightness", "Contrast", "Color")
    for digit, name in enumerate(names, 1):
        monkeypatch.setitem(policies._ENHANCEMENTS, name, lambda image, _, digit=digit: 10 * image + digit)
    monkeypatch.setattr(policies, "adjust_hue", lambda image, _: 10 * image + 4)
    orders = jittered(jnp.zeros((1, 1, 3)), 0.4, 0.4, 0.4, 0.1)[:, 0, 0, 0]
    digits = np.array([sorted(str(int(order))) for order in orders])
    assert np.all(digits == list("1234"))
    assert_frequencies(orders, dict.fromkeys(set(orders), 1 / 24))


def test_lighting_shifts_the_whole_image_along_the_colours_of_imagenet():
    image = jnp.full((2, 2, 3), 128.0)
    shifted = np.asarray(jax.jit(jax.vmap(lambda key: policies.lighting(key, image, 0.1)))(KEYS))
    assert np.all(shifted == shifted[:, :1, :1])
    variances, axes = np.linalg.eigh(np.cov(shifted[:, 0, 0].T))
    np.testing.assert_allclose(np.sqrt(variances) / 255 / 0.1, [0.0045, 0.0188, 0.2175], rtol=0.05)
    np.testing.assert_allclose(np.abs(axes[:, 2]), 3**-0.5, atol=0.02)  # most of all lighter or darker
    np.testing.assert_allclose(shifted.mean((0, 1, 2)), 128, atol=1)
    bright = np.asarray(policies.lighting(KEYS[0], jnp.full((2, 2, 3), 250.0), 10.0))
    assert set(np.unique(bright)) <= {0.0, 255.0}


erase = jax.jit(jax.vmap(policies.erase, (0, None, None)))


def erased(shape, probability):
    """Where an image is erased with each of KEYS, bool (keys, h, w)."""
    holes = np.asarray(erase(KEYS, jnp.ones(shape), probability)) == 0
    assert np.all(holes.any(-1) == holes.all(-1))
    return holes[..., 0]


def sides(holes):
    """Heights and widths of the boxes, which must be rectangles."""
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    np.testing.assert_array_equal(holes.sum((1, 2)), heights * widths)
    return heights, widths


WIDE = (24, 80, 3)  # many a box does not fit


def test_erased_boxes_are_of_the_published_sizes_and_reach_every_pixel():
    holes = erased(WIDE, 1.0)
    heights, widths = sides(holes)
    assert 0 < heights.min() <= heights.max() == 23
    # half a pixel for the rounding of each side
    assert np.all((heights + 0.5) * (widths + 0.5) >= 0.02 * 24 * 80)
    assert np.all((heights - 0.5) * (widths - 0.5) <= 0.33 * 24 * 80)
    assert np.all((heights + 0.5) / (widths - 0.5) >= 0.3)
    assert np.all((heights - 0.5) / (widths + 0.5) <= 3.3)
    assert np.all(holes.any(0))


def test_images_are_erased_as_often_as_asked():
    assert_frequencies(erased(WIDE, 0.25).any((1, 2)), {True: 0.25, False: 0.75})
    assert not erased(WIDE, 0.0).any()


def test_nothing_is_erased_where_no_box_is_smaller_than_the_image():
    assert not erased((1, 200, 3), 1.0).any()


def test_erase_keeps_the_type():
    for dtype in (jnp.bfloat16, jnp.float32, jnp.uint8):
        image = jax.ShapeDtypeStruct((8, 8, 3), dtype)
        assert jax.eval_shape(policies.erase, KEYS[0], image, 1.0).dtype == dtype


def test_erased_boxes_are_distributed_as_torchvisions(v2):
    import torch

    torch.manual_seed(0)
    erasing, image = v2.RandomErasing(p=1.0), torch.ones(3, *WIDE[:2])
    theirs = [erasing.make_params([image]) for _ in range(1000)]
    holes = erased(WIDE, 1.0)
    ours = (*sides(holes), holes.any(2).argmax(1), holes.any(1).argmax(1))
    for name, values in zip("h w i j".split(), ours, strict=True):
        assert scipy.stats.ks_2samp(values, [box[name] for box in theirs]).pvalue > 1e-3, name


def test_operations_of_a_batch_are_those_of_its_images_one_by_one():
    operations = jnp.array(list(OPERATIONS.values()))
    magnitudes = jnp.array([MAGNITUDES[name][1 % len(MAGNITUDES[name])] for name in OPERATIONS])
    images = jnp.float32([np.roll(PHOTO, shift, axis=0) for shift in range(len(OPERATIONS))])
    batch = jax.jit(jax.vmap(policies.apply_operation))(operations, images, magnitudes)
    for name, *one, expected in zip(OPERATIONS, operations, images, magnitudes, batch, strict=True):
        alone = np.asarray(apply_operation(*one))
        np.testing.assert_allclose(alone, expected, atol=1, err_msg=name)
        assert np.mean(alone != expected) < 0.01


POLICIES = {
    "rand_augment": (1, 9.0, 0.5),
    "auto_augment": (),
    "trivial_augment": (),
    "color_jitter": (0.4, 0.4, 0.4, 0.1),
    "lighting": (0.1,),
    "erase": (0.5,),
}


@pytest.mark.parametrize("name", POLICIES)
def test_an_images_fate_depends_on_its_key_alone(name):
    images = jnp.float32([np.roll(PHOTO, shift, axis=0) for shift in range(16)])
    policy = jax.jit(jax.vmap(lambda key, image: getattr(policies, name)(key, image, *POLICIES[name])))
    augmented = np.asarray(policy(KEYS[:16], images))
    np.testing.assert_array_equal(policy(KEYS[:16][::-1], images[::-1]), augmented[::-1])
    assert augmented.min() >= 0
    assert augmented.max() <= 255
    assert name == "lighting" or np.all(augmented == np.round(augmented))
    changed = np.any(augmented != images, axis=(1, 2, 3))
    assert changed.sum() > 4
    assert len({image.tobytes() for image in policy(KEYS[:16], images[:1].repeat(16, 0))}) > 4
