"""The step of a config before its run: for devices, and with data, that need not be there."""

import math
import pathlib
from collections.abc import Sequence

import jax
import ml_collections

from resnet_jax.config.build import Assembly, make_recipe, random_keys, resolve
from resnet_jax.config.recipe import Recipe
from resnet_jax.data.stand_in import known_info, stand_ins
from resnet_jax.training.program import Program


def planned_recipe(config: ml_collections.ConfigDict) -> Recipe:
    """The recipe of a config; of ImageNet, and of data of one image size, no file is read.

    Raises:
      UserError: a config that cannot run, or other data that are not there.
    """
    config = resolve(config)
    return make_recipe(config, info=known_info(config.data.name))


def with_batch(recipe: Recipe, batch: int) -> Recipe:
    """The recipe with another global batch.

    Raises:
      UserError: it cannot run.
    """
    config = recipe.config.copy_and_resolve_references()
    config.train.batch_size = batch
    return Recipe(config, recipe.info)


def batch_multiple(recipe: Recipe, devices: int) -> int:
    """The divisor of every possible global batch."""
    augment = recipe.config.augment
    mixed = 2 if augment.mixup or augment.cutmix else 1
    per_device = math.lcm(recipe.config.train.grad_accum_steps, mixed)
    return math.lcm(devices * per_device, augment.repeats)


def max_batch(recipe: Recipe) -> int:
    """The largest global batch that the data allow: each example once, or as often as it is repeated."""
    return recipe.num_examples * recipe.config.augment.repeats


def planned_program(recipe: Recipe, devices: Sequence[jax.Device]) -> Program:
    """The compiled functions that a run of this recipe would have, its data replaced by stand-ins of equal shapes.

    Args:
      recipe: recipe of the run.
      devices: those to compile for.

    Raises:
      UserError: the config does not fit the devices.
    """
    sizes = {"train": recipe.num_examples, "validation": recipe.num_validation, "test": recipe.info.splits["test"]}
    assembly = Assembly(recipe, devices=devices, splits=stand_ins(recipe.info, sizes))
    return assembly.program(random_keys(recipe.config.seed)[0])


def step_of_largest_images(recipe: Recipe) -> int:
    """A step whose images are as large as any of the run's."""
    return max(recipe.train_shapes, key=lambda start_and_shape: math.prod(start_and_shape[1]))[0]


def has_loop_over_layers(recipe: Recipe) -> bool:
    """True if a step runs its convolutions in a loop, whose FLOP XLA counts once."""
    return recipe.config.train.grad_accum_steps > 1 or recipe.config.model.scan_blocks


def checkpoints_kept(recipe: Recipe) -> int:
    """The max number of checkpoints in a workdir: the last ones, the best, and the one being written."""
    return recipe.config.checkpoint.keep + 2


def data_folder(recipe: Recipe) -> pathlib.Path | None:
    """The folder of the data, if the config names it."""
    folder = recipe.config.data.data_dir
    return pathlib.Path(folder) if folder else None


def num_devices(config: ml_collections.ConfigDict, available: int) -> int:
    """The number of devices that a run uses."""
    return config.parallel.devices or available
