"""What a research script asks of a finished run: its model with its weights, and its data."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.build import build_data, build_model, evaluation_examples, image_shape, variable_shapes
from resnet_jax.checkpoint import Checkpoints
from resnet_jax.data.stream import Workers, batches, check_damaged, name_damaged
from resnet_jax.errors import UserError
from resnet_jax.models.resnet import ResNet
from resnet_jax.validate import check_config
from resnet_jax.workdir import read_config


def load_checkpoint(
    workdir: str | pathlib.Path, step: str | int = "best", *, ema: bool = False
) -> tuple[ResNet, dict[str, dict]]:
    """The model of a run and its weights.

    >>> model, variables = load_checkpoint("runs/digits", step="best")
    >>> logits = model.apply(variables, images, train=False)

    Args:
      workdir: of the run.
      step: "best" on the validation split, "latest", or a number.
      ema: the moving average of the weights instead of the weights.

    Returns:
      (model, {"params", "batch_stats"}): float32 arrays on the default device.

    Raises:
      UserError: no run, no such step, a damaged checkpoint, no moving average.
    """
    config = read_config(workdir)
    check_config(config)
    model = build_model(config)
    with Checkpoints(workdir, config.checkpoint.keep, config.checkpoint.best_metric, read_only=True) as checkpoints:
        shapes = variable_shapes(model, image_shape(config))
        variables = checkpoints.read_variables(checkpoints.resolve(step), shapes)
    if ema and "ema" not in variables:
        raise UserError(f"ema: {workdir} kept no moving average of the weights (train.ema_decay was 0)")
    averaged = variables.pop("ema", None)
    return model, jax.tree.map(jnp.asarray, averaged if ema else variables)


def load_data(workdir: str | pathlib.Path, split: str = "test") -> tuple[jax.Array, np.ndarray]:
    """A split of the data of a run, prepared as the run prepared it for evaluation, all of it in memory.

    Args:
      workdir: of the run.
      split: "train", "validation" or "test".

    Returns:
      (images, labels): float32 (n, h, w, c), normalised, on the default device; int32 (n,). An image that is damaged
      is black, and warned of.

    Raises:
      UserError: no run, no such split, data that are not prepared, too many damaged images.
    """
    config = read_config(workdir)
    check_config(config)
    splits, prepare = build_data(config)
    if split not in splits:
        raise UserError(f"split: expected one of {', '.join(splits)}, found {split!r}")
    if config.data.loader == "stream":
        ids = np.arange(len(splits[split]))
        examples = evaluation_examples(config, splits[split], batch_size=len(ids))
        workers = Workers("threads", config.data.num_workers).settled(examples, ids)
        (whole,) = batches(examples, 0, 1, ids, workers)
        name_damaged(splits[split], whole["damaged"])
        check_damaged(np.sum(whole["damaged"] >= 0), len(ids), config.data.max_damaged)
        return jax.jit(prepare)(whole["image"]), whole["label"]
    return jax.jit(prepare)(splits[split].images), splits[split].labels
