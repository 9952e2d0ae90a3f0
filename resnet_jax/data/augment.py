"""Preparation and augmentation of images on the device, under jit.

Keys are per image: `fold_in(fold_in(key, step), position in the global batch)`, so that a picture's fate does not
depend on how many devices share the batch.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from resnet_jax.data import policies


def normalize(images: jax.Array, mean: jax.Array, std: jax.Array, size: int | None = None) -> jax.Array:
    """float32 images from ones of 0..255 (b, h, w, c): scaled to 0..1, `(x - mean) / std`, resized to `size` squared.

    `mean` and `std` are scalars, or per channel (1, 1, 1, c), or per pixel (1, h, w, c).
    """
    images = (images.astype(jnp.float32) / 255 - mean) / std
    if size is not None and images.shape[1:3] != (size, size):
        images = jax.image.resize(images, (images.shape[0], size, size, images.shape[-1]), "bilinear")
    return images


def flip(key: jax.Array, image: jax.Array, enabled: bool) -> jax.Array:
    """Mirror left and right with probability one half."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def pad_crop(key: jax.Array, image: jax.Array, padding: int) -> jax.Array:
    """Pad by `padding` zeros (the mean colour) on every side and cut a window of the old size at random."""
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def cutout(key: jax.Array, image: jax.Array, size: int) -> jax.Array:
    """Set a square of side `size`, its centre anywhere in the image, to zero (DeVries and Taylor 2017)."""
    height, width, _ = image.shape
    hole = _box(key, height, width, size, size)
    return jnp.where(hole[..., None], 0.0, image)


# Of normalised images, in order of application.
AUGMENTATIONS = {"pad_crop": pad_crop, "flip": flip, "cutout": cutout, "erasing": policies.erase}

# Of grey levels: (key, image, settings) -> image. One of them is applied.
POLICIES = {
    "randaugment": lambda key, image, settings: policies.rand_augment(
        key, image, settings["num_ops"], settings["magnitude"], settings["magnitude_std"]
    ),
    "autoaugment": lambda key, image, settings: policies.auto_augment(key, image),
    "trivialaugment": lambda key, image, settings: policies.trivial_augment(key, image),
}


def augment_colours(key: jax.Array, images: jax.Array, positions: jax.Array, settings: Mapping) -> jax.Array:
    """Apply the policy, the colour jitter and the lighting noise that are on.

    Args:
      key: typed PRNG key of the step.
      images: uint8 (b, h, w, c); in colour if anything is on.
      positions: int32 (b,), positions in the global batch.
      settings: with `policy` ("none" or a key of POLICIES) and its `num_ops`, `magnitude` and `magnitude_std`,
        `jitter` (of brightness, contrast, saturation, hue) and `lighting`.

    Returns:
      Grey levels 0..255, (b, h, w, c): uint8 if nothing is on, else float32.
    """
    jitter = tuple(settings["jitter"])
    changes = []
    if settings["policy"] != "none":
        changes.append(lambda key, image: POLICIES[settings["policy"]](key, image, settings))
    if any(jitter):
        changes.append(lambda key, image: policies.color_jitter(key, image, *jitter))
    if settings["lighting"]:
        changes.append(lambda key, image: policies.lighting(key, image, settings["lighting"]))
    if not changes:
        return images

    def change_one(position, image):
        image_key = jax.random.fold_in(key, position)
        for index, change in enumerate(changes):
            image = change(jax.random.fold_in(image_key, index), image)
        return image

    return jax.vmap(change_one)(positions, images.astype(jnp.float32))


def augment_batch(
    key: jax.Array, batch: dict, *, settings: Mapping, normalize: Callable, num_classes: int
) -> dict[str, jax.Array]:
    """The batch with `image` normalised and augmented, float32, and `target`, float32 (b, classes), added.

    Args:
      key: PRNG key of the step.
      batch: `image`, uint8 (b, h, w, c), `label` and `position` in the global batch, int32 (b,); other arrays stay.
      settings: see `augment_colours`, `augment_images` and `mix_images`.
      normalize: from images of 0..255 to model input.
      num_classes: number of classes.
    """
    augment_key, mix_key = jax.random.split(key)
    images = augment_colours(jax.random.fold_in(key, 3), batch["image"], batch["position"], settings)
    images = augment_images(augment_key, normalize(images), batch["position"], settings)
    targets = jax.nn.one_hot(batch["label"], num_classes)
    images, targets = mix_images(mix_key, images, targets, batch["position"], settings)
    return {**batch, "image": images, "target": targets}


def mixup(key: jax.Array, image: jax.Array, partner: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Blend: `share * image + (1 - share) * partner`, share ~ Beta(alpha, alpha) (Zhang et al. 2018).

    Returns (image, share).
    """
    share = jax.random.beta(key, alpha, alpha)
    return share * image + (1 - share) * partner, share


def cutmix(key: jax.Array, image: jax.Array, partner: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Paste a box of the partner that covers 1 - Beta(alpha, alpha) of the image before clipping (Yun et al. 2019).

    Returns (image, share), the share counted from the pixels that remain.
    """
    share_key, box_key = jax.random.split(key)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
    height, width, _ = image.shape
    box = _box(box_key, height, width, jnp.round(side * height), jnp.round(side * width))
    return jnp.where(box[..., None], partner, image), 1 - jnp.mean(box, dtype=jnp.float32)


MIXES = {"mixup": mixup, "cutmix": cutmix}


def _box(key, height, width, box_height, box_width) -> jax.Array:
    """bool (height, width): a box of the given size whose centre is uniform over the pixels, clipped at the border."""
    row_key, column_key = jax.random.split(key)
    top = jax.random.randint(row_key, (), 0, height) - box_height // 2
    left = jax.random.randint(column_key, (), 0, width) - box_width // 2
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return (rows >= top) & (rows < top + box_height) & (columns >= left) & (columns < left + box_width)


def augment_images(key: jax.Array, images: jax.Array, positions: jax.Array, strengths: Mapping) -> jax.Array:
    """Apply the AUGMENTATIONS whose strength is not zero.

    Args:
      key: typed PRNG key of the step.
      images: float32 (b, h, w, c), normalised.
      positions: int32 (b,), positions in the global batch.
      strengths: for each name in AUGMENTATIONS its argument (`enabled`, `padding`, `size`).
    """

    def augment_one(position, image):
        image_key = jax.random.fold_in(key, position)
        for index, (name, apply) in enumerate(AUGMENTATIONS.items()):
            if strengths[name]:
                image = apply(jax.random.fold_in(image_key, index), image, strengths[name])
        return image

    return jax.vmap(augment_one)(positions, images)


def mix_images(
    key: jax.Array, images: jax.Array, targets: jax.Array, positions: jax.Array, strengths: Mapping
) -> tuple[jax.Array, jax.Array]:
    """Mix each image and its target with its neighbour's, by mixup or cutmix (each with equal chance if both are on).

    Neighbours are positions 2i and 2i+1: the order is random already, and a pair never spans two devices.

    Args:
      key: typed PRNG key of the step.
      images: float32 (b, h, w, c), b even.
      targets: float32 (b, classes), rows that sum to one.
      positions: int32 (b,), positions in the global batch.
      strengths: for each name in MIXES its alpha, 0 for off.
    """
    mixes = [(mix, strengths[name]) for name, mix in MIXES.items() if strengths[name]]
    if not mixes:
        return images, targets

    def mix_one(position, image, partner, target, partner_target):
        choice_key, mix_key = jax.random.split(jax.random.fold_in(key, position))
        mixed = [mix(mix_key, image, partner, alpha) for mix, alpha in mixes]
        choice = jax.random.randint(choice_key, (), 0, len(mixed))
        image, share = jax.tree.map(lambda *options: jnp.stack(options)[choice], *mixed)
        return image, share * target + (1 - share) * partner_target

    return jax.vmap(mix_one)(positions, images, swap_neighbours(images), targets, swap_neighbours(targets))


def swap_neighbours(x: jax.Array) -> jax.Array:
    """Exchange rows 2i and 2i+1."""
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
