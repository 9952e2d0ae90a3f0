"""Augmentation of pixels on the device: learned and random policies, colour noise, random erasing.

Every function here takes one image, float32 (h, w, 3) of whole grey levels 0..255 (but for `erase`), and is meant to
run under jit and vmap. Operations and ranges are those of torchvision.transforms.v2, with bilinear interpolation and
black outside the image.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Under vmap a switch computes all its branches, for every image. So there are three kinds of operation, each cheap,
# and what differs within a kind is small: an affine warp, an enhancement, a table of new grey levels.


def _rotation(angle) -> jax.Array:
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return jnp.float32([[cosine, -sine, 0], [sine, cosine, 0]])


# (magnitude, height, width) -> (2, 3): from a pixel's (x, y, 1), counted from the centre, to its source's (x, y)
_WARPS = {
    "ShearX": lambda m, height, width: jnp.float32([[1, m, m * height / 2], [0, 1, 0]]),
    "ShearY": lambda m, height, width: jnp.float32([[1, 0, 0], [m, 1, m * width / 2]]),
    "TranslateX": lambda m, height, width: jnp.float32([[1, 0, -jnp.trunc(m)], [0, 1, 0]]),
    "TranslateY": lambda m, height, width: jnp.float32([[1, 0, 0], [0, 1, -jnp.trunc(m)]]),
    "Rotate": lambda m, height, width: _rotation(jnp.deg2rad(m)),
}


def _warp(image, matrix) -> jax.Array:
    """Each pixel from its source, interpolated between four pixels; black outside."""
    height, width, _ = image.shape
    x = jnp.arange(width)[None, :] - (width - 1) / 2
    y = jnp.arange(height)[:, None] - (height - 1) / 2
    x, y = (a * x + b * y + c for a, b, c in matrix)
    x = jnp.clip(x + (width - 1) / 2, -1, width)
    y = jnp.clip(y + (height - 1) / 2, -1, height)
    left, top = jnp.floor(x), jnp.floor(y)
    right_share, bottom_share = (x - left)[..., None], (y - top)[..., None]

    stride = width + 3
    pixels = jnp.pad(image, ((1, 2), (1, 2), (0, 0))).reshape(-1, 3)  # so that -1, width and width + 1 are there
    place = ((top + 1) * stride + left + 1).astype(jnp.int32)

    def row(place):
        left_pixel, right_pixel = (pixels.at[p].get(mode="promise_in_bounds") for p in (place, place + 1))
        return (1 - right_share) * left_pixel + right_share * right_pixel

    return jnp.round((1 - bottom_share) * row(place) + bottom_share * row(place + stride))


def _enhance(partner, image, magnitude) -> jax.Array:
    """Away from `partner(image)`, or towards it: -1 gives the partner, 0 the image."""
    return jnp.floor(jnp.clip(image + magnitude * (image - partner(image)), 0, 255))


def _grey(image) -> jax.Array:
    """ITU-R 601 luma (h, w, 1), rounded down."""
    red, green, blue = jnp.moveaxis(image, -1, 0)
    return jnp.floor(0.2989 * red + 0.587 * green + 0.114 * blue)[..., None]


def _smooth(image) -> jax.Array:
    """Weighted mean over 3x3 pixels, 5 for the centre and 1 for each neighbour; the border stays."""
    rows = image[:-2] + image[1:-1] + image[2:]
    centre = image[1:-1, 1:-1]
    mean = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * centre) / 13
    return image + jnp.pad(jnp.round(mean) - centre, ((1, 1), (1, 1), (0, 0)))


# (image, magnitude) -> image; the magnitude is the factor less 1
_ENHANCEMENTS = {
    "Brightness": functools.partial(_enhance, jnp.zeros_like),
    "Contrast": functools.partial(_enhance, lambda image: jnp.mean(_grey(image))),
    "Color": functools.partial(_enhance, _grey),
    "Sharpness": functools.partial(_enhance, _smooth),
}


_LEVELS = np.tile(np.arange(256, dtype=np.float32)[:, None], (1, 3))


def _posterize(image, bits) -> jax.Array:
    dropped = 8 - jnp.round(bits).astype(jnp.int32)
    return (_LEVELS.astype(jnp.int32) >> dropped << dropped).astype(jnp.float32)


def _autocontrast(image, magnitude) -> jax.Array:
    low, high = image.min((0, 1))[None], image.max((0, 1))[None]
    stretched = (_LEVELS - low) / jnp.where(high == low, 1, (high - low) * np.float32(1 / 255))
    return jnp.where(high == low, _LEVELS, jnp.floor(jnp.clip(stretched, 0, 255)))


def _equalize(image, magnitude) -> jax.Array:
    """PIL's histogram equalisation: the pixels of the highest level do not count."""
    counts = jnp.zeros((256, 3), jnp.int32).at[image.astype(jnp.int32), np.arange(3)[None, None]].add(1)
    below = jnp.cumsum(counts, axis=0) - counts
    step = jnp.max(jnp.where(counts > 0, below, 0), axis=0, keepdims=True) // 255
    table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step == 0, _LEVELS, table)


# (image, magnitude) -> (256, 3): the new level of each level, by channel
_TABLES = {
    "Identity": lambda image, magnitude: _LEVELS,
    "Posterize": _posterize,
    "Solarize": lambda image, threshold: jnp.where(255 * threshold > _LEVELS, _LEVELS, 255 - _LEVELS),
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": lambda image, magnitude: 255 - _LEVELS,
}

OPERATIONS = {name: index for index, name in enumerate([*_WARPS, *_ENHANCEMENTS, *_TABLES])}


def apply_operation(operation: jax.Array | int, image: jax.Array, magnitude: jax.Array | float) -> jax.Array:
    """Apply one operation, a value of OPERATIONS, to float32 (h, w, 3) whole grey levels; gives such again.

    The magnitude is what torchvision's policies hand to the operation of that name: shear in pixels per pixel,
    translation in pixels (cut to whole ones), rotation in degrees, for Brightness, Color, Contrast and Sharpness the
    factor less 1, bits for Posterize, a threshold in 0..1 for Solarize; the others ignore it.
    """
    # `switch` takes the nearest branch for the operations of another kind
    first_enhancement, first_table = OPERATIONS["Brightness"], OPERATIONS["Identity"]

    def warp():
        return _warp(image, jax.lax.switch(operation, list(_WARPS.values()), magnitude, *image.shape[:2]))

    def enhance():
        return jax.lax.switch(operation - first_enhancement, list(_ENHANCEMENTS.values()), image, magnitude)

    def look_up():
        tables = jnp.stack([table(image, magnitude) for table in _TABLES.values()])
        # By a product (exact, as levels are whole): XLA would fuse a switch or an index into the look-up, that is,
        # compute the table anew for each pixel.
        table = jnp.einsum("t,tlc->lc", jax.nn.one_hot(operation - first_table, len(tables)), tables)
        return jnp.take_along_axis(table, image.astype(jnp.int32).reshape(-1, 3), axis=0).reshape(image.shape)

    kind = jnp.int32(operation >= first_enhancement) + jnp.int32(operation >= first_table)
    return jax.lax.switch(kind, [warp, enhance, look_up])


def _space(shear, translate_x, translate_y, degrees, enhance, bits) -> dict[str, tuple[float, float]]:
    """The magnitude of each operation at levels 0 and 1 of a policy's scale; it is linear between."""
    return {
        **dict.fromkeys(("ShearX", "ShearY"), (0, shear)),
        "TranslateX": (0, translate_x),
        "TranslateY": (0, translate_y),
        "Rotate": (0, degrees),
        **dict.fromkeys(_ENHANCEMENTS, (0, enhance)),
        "Posterize": (8, bits),
        "Solarize": (1, 0),
        **dict.fromkeys(("Identity", "AutoContrast", "Equalize", "Invert"), (0, 0)),
    }


def auto_augment_space(height: int, width: int) -> dict[str, tuple[float, float]]:
    """The magnitudes of AutoAugment and RandAugment at both ends of their scale, by operation."""
    return _space(0.3, 150 / 331 * width, 150 / 331 * height, 30, 0.9, 4)


TRIVIAL_AUGMENT_SPACE = _space(0.99, 32, 32, 135, 0.99, 2)


def _apply_at_level(key, operation, image, space, level) -> jax.Array:
    """Apply an operation at a level (0..1) of the space, with either sign where magnitudes start at 0."""
    start, end = jnp.array([space[name] for name in OPERATIONS])[operation]
    sign = jnp.where(start == 0, jax.random.rademacher(key, ()), 1)
    return apply_operation(operation, image, start + sign * level * (end - start))


def rand_augment(key: jax.Array, image: jax.Array, num_ops: int, magnitude: float, magnitude_std: float) -> jax.Array:
    """`num_ops` operations, each any of 14 with equal chance (RandAugment, Cubuk et al. 2019, arXiv:1909.13719).

    Each has a magnitude ~ Normal(magnitude, magnitude_std) of its own, clipped to the scale 0..30.
    """
    space = auto_augment_space(*image.shape[:2])
    for step in range(num_ops):
        operation_key, magnitude_key, sign_key = jax.random.split(jax.random.fold_in(key, step), 3)
        operation = jax.random.randint(operation_key, (), 0, OPERATIONS["Invert"])  # all but Invert, the last
        level = jnp.clip(magnitude + magnitude_std * jax.random.normal(magnitude_key), 0, 30) / 30
        image = _apply_at_level(sign_key, operation, image, space, level)
    return image


def trivial_augment(key: jax.Array, image: jax.Array) -> jax.Array:
    """One of 14 operations at one of 31 magnitudes (TrivialAugmentWide, Mueller and Hutter 2021, arXiv:2103.10158)."""
    operation_key, magnitude_key, sign_key = jax.random.split(key, 3)
    operation = jax.random.randint(operation_key, (), 0, OPERATIONS["Invert"])  # all but Invert, the last
    level = jax.random.randint(magnitude_key, (), 0, 31) / 30
    return _apply_at_level(sign_key, operation, image, TRIVIAL_AUGMENT_SPACE, level)


# The policy learned on ImageNet: 25 pairs of (operation, probability, magnitude 0..9 or 0 where there is none)
_POLICY = """
    Posterize 0.4 8 Rotate 0.6 9        Solarize 0.6 5 AutoContrast 0.6 0   Equalize 0.8 0 Equalize 0.6 0
    Posterize 0.6 7 Posterize 0.6 6     Equalize 0.4 0 Solarize 0.2 4       Equalize 0.4 0 Rotate 0.8 8
    Solarize 0.6 3 Equalize 0.6 0       Posterize 0.8 5 Equalize 1.0 0      Rotate 0.2 3 Solarize 0.6 8
    Equalize 0.6 0 Posterize 0.4 6      Rotate 0.8 8 Color 0.4 0            Rotate 0.4 9 Equalize 0.6 0
    Equalize 0.0 0 Equalize 0.8 0       Invert 0.6 0 Equalize 1.0 0         Color 0.6 4 Contrast 1.0 8
    Rotate 0.8 8 Color 1.0 2            Color 0.8 8 Solarize 0.8 7          Sharpness 0.4 7 Invert 0.6 0
    ShearX 0.6 5 Equalize 1.0 0         Color 0.4 0 Equalize 0.6 0          Equalize 0.4 0 Solarize 0.2 4
    Solarize 0.6 5 AutoContrast 0.6 0   Invert 0.6 0 Equalize 1.0 0         Color 0.6 4 Contrast 1.0 8
    Equalize 0.8 0 Equalize 0.6 0
""".split()
IMAGENET_POLICY = [
    [(name, float(p), int(magnitude)) for name, p, magnitude in pair] for pair in np.reshape(_POLICY, (25, 2, 3))
]


def auto_augment(key: jax.Array, image: jax.Array) -> jax.Array:
    """One of the 25 pairs of IMAGENET_POLICY (AutoAugment, Cubuk et al. 2018, arXiv:1805.09501)."""
    space = auto_augment_space(*image.shape[:2])
    policy_key, key = jax.random.split(key)
    policy = [[(OPERATIONS[name], p, magnitude / 9) for name, p, magnitude in pair] for pair in IMAGENET_POLICY]
    for step, (operation, probability, level) in enumerate(jax.random.choice(policy_key, jnp.array(policy))):
        applied_key, sign_key = jax.random.split(jax.random.fold_in(key, step))
        applied = jax.random.bernoulli(applied_key, probability)
        operation = jnp.where(applied, operation.astype(jnp.int32), OPERATIONS["Identity"])
        image = _apply_at_level(sign_key, operation, image, space, level)
    return image


def adjust_hue(image: jax.Array, turn: jax.Array | float) -> jax.Array:
    """Turn the hue (of HSV) by a part of a circle, -0.5..0.5; whole grey levels in and out."""
    red, green, blue = jnp.moveaxis(image, -1, 0)
    high = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = high - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma == 0, 1, chroma)
    from_green, from_blue = 2 + (blue - red) / divisor, 4 + (red - green) / divisor
    sixths = jnp.where(high == red, (green - blue) / divisor, jnp.where(high == green, from_green, from_blue))
    sixths = (sixths + 6 * turn)[..., None] + np.float32([5, 3, 1])[None, None]
    ramp = sixths - 6 * jnp.floor(sixths / 6)
    turned = high[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(ramp, 4 - ramp), 0, 1)
    return jnp.floor(turned * np.float32(255.999 / 255))  # torchvision's way from 0..1 to whole levels


def color_jitter(
    key: jax.Array, image: jax.Array, brightness: float, contrast: float, saturation: float, hue: float
) -> jax.Array:
    """Adjust in random order, each by a factor in [max(0, 1 - x), 1 + x], hue by [-hue, hue] of a circle; 0 is off.

    As torchvision.transforms.ColorJitter; hue is at most 0.5.
    """
    adjustments = (*(_ENHANCEMENTS[name] for name in ("Brightness", "Contrast", "Color")), adjust_hue)
    strengths = (brightness, contrast, saturation, hue)
    used = [index for index, strength in enumerate(strengths) if strength]
    order_key, key = jax.random.split(key)
    limits = jnp.float32([strengths[index] for index in used])
    magnitudes = jax.random.uniform(key, limits.shape, minval=-jnp.minimum(limits, 1), maxval=limits)
    for place in jax.random.permutation(order_key, len(used)):
        image = jax.lax.switch(place, [adjustments[index] for index in used], image, magnitudes[place])
    return image


# Of ImageNet's colours on the scale 0..1, as in fb.resnet.torch's datasets/imagenet.lua; eigenvectors are columns.
_EIGENVALUES = np.float32([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.float32([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def lighting(key: jax.Array, image: jax.Array, std: float) -> jax.Array:
    """Shift all pixels along the principal axes of ImageNet's colours (Krizhevsky et al. 2012, section 4.1).

    By alpha times the eigenvalue along each, alpha ~ Normal(0, std). The result is clipped to 0..255, not rounded.
    """
    alphas = std * jax.random.normal(key, (3,))
    shift = _EIGENVECTORS @ (alphas * _EIGENVALUES)
    return jnp.clip(image + 255 * shift[None, None], 0, 255)


def erase(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
    """Set a box to zero, of 0.02..0.33 of the area and 0.3..3.3 as high as wide (Zhong et al. 2017, arXiv:1708.04896).

    As torchvision.transforms.RandomErasing: the first of ten boxes that is smaller than the image, or none.

    Args:
      image: (h, w, c) of any dtype, normalised, so that zero is the mean colour.
    """
    height, width, _ = image.shape
    chance_key, size_key, place_key = jax.random.split(key, 3)
    low, high = np.float32([[0.02], [np.log(0.3)]]), np.float32([[0.33], [np.log(3.3)]])
    area, log_ratio = jax.random.uniform(size_key, (2, 10), minval=low, maxval=high)
    area, ratio = height * width * area, jnp.exp(log_ratio)
    sides = jnp.round(jnp.sqrt(jnp.stack([area * ratio, area / ratio]))).astype(jnp.int32)
    fits = (sides[0] < height) & (sides[1] < width)
    box_height, box_width = sides[:, jnp.argmax(fits)]
    ends = jnp.stack([height - box_height, width - box_width]) + 1
    top, left = jax.random.randint(place_key, (2,), 0, ends)
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    box = (rows >= top) & (rows < top + box_height) & (columns >= left) & (columns < left + box_width)
    erased = fits.any() & jax.random.bernoulli(chance_key, probability)
    return jnp.where((erased & box)[..., None], 0, image)
