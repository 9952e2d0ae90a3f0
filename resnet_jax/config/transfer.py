"""Weights that a run begins with: those of another run, or of another library, made to fit its images and classes."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from resnet_jax.checkpoint.card import ModelCard, read_card
from resnet_jax.config.recipe import Recipe, model_attributes
from resnet_jax.config.runs import is_ours, load_card, load_model
from resnet_jax.data.info import DatasetInfo
from resnet_jax.errors import UserError
from resnet_jax.models import different_attributes
from resnet_jax.models.scan import convert_blocks
from resnet_jax.weights.pretrained import first_kernel, read_pretrained
from resnet_jax.weights.trees import HEAD, check_fit, flatten, unflatten


class Start(NamedTuple):
    """Weights to begin with.

    Attributes:
      variables: {"params", "batch_stats"}.
      words: a sentence on changes that made them fit.
    """

    variables: dict
    words: str


def normalized_as_weights(
    config: ml_collections.ConfigDict, info: DatasetInfo, workdir: pathlib.Path | None
) -> DatasetInfo:
    """Dataset metadata with the mean and std by which the weights of `init_from` know their images.

    A run that has begun has them in its card, so that it can be resumed where these weights are gone.

    Args:
      config: config of the run, `data.normalization` "weights".
      info: metadata of the data set.
      workdir: run directory; or None.
    """
    began = read_card(workdir) if workdir is not None and workdir.is_dir() else None
    images = (began or _card_of(config)).preprocessing
    if images["mean_image"] is not None:
        raise UserError("data.normalization: expected weights of images normalised by channel, found a mean image")
    mean, std = (_for_channels(images[name], images["channel_order"], len(info.mean)) for name in ("mean", "std"))
    return dataclasses.replace(info, mean=mean, std=std)


def initial_weights(recipe: Recipe, own: Mapping) -> Start:
    """The weights of `init_from` for a run, and its own random head if `head` is "new".

    Args:
      recipe: recipe of the run.
      own: its random params, for the head.

    Raises:
      UserError: they are those of another model, or of other classes.
    """
    source, class_names = recipe.config.init_from, recipe.info.class_names
    card, variables = _load(recipe.config)
    _check_net(card, recipe)
    variables = convert_blocks(card.create_model(), recipe.model, variables)
    flat, expected = flatten(variables), flatten(recipe.variable_shapes)
    words = [f"beginning with the weights in {source}"]
    if recipe.config.head == "new":
        flat |= {name: x for name, x in flatten({"params": own}).items() if name.split("/")[1] == HEAD}
        words.append(f"with a new head for {len(class_names)} classes")
    else:
        _check_classes(card, class_names)
    kernel = first_kernel(expected)
    flat[kernel], adapted = _for_input(flat[kernel], expected[kernel].shape[2], card.preprocessing["channel_order"])
    flat = check_fit(flat, expected, source)
    return Start(unflatten({name: jnp.asarray(x) for name, x in flat.items()}), ", ".join([*words, *adapted]))


def _load(config) -> tuple[ModelCard, dict]:
    if is_ours(config.init_from):
        card, _, variables = load_model(config.init_from)
        return card, variables
    unrolled = {name: value for name, value in model_attributes(config).items() if name != "scan_blocks"}
    loaded = read_pretrained(config.model.name, config.init_from, **unrolled)
    return loaded.card, loaded.variables


def _check_net(card: ModelCard, recipe: Recipe) -> None:
    other = different_attributes(card.create_model(), recipe.model)
    if other:
        raise UserError(
            f"init_from: expected weights of a net that computes what {recipe.config.model.name} does here, found "
            f"{card.model['name']} with other {', '.join(other)}; set model.* and norm.* as in their training"
        )


def _card_of(config) -> ModelCard:
    return load_card(config.init_from) if is_ours(config.init_from) else _load(config)[0]


def _check_classes(card: ModelCard, class_names) -> None:
    unnamed = all(name == f"class {label}" for label, name in enumerate(card.class_names))
    if len(card.class_names) != len(class_names) or not (unnamed or tuple(card.class_names) == tuple(class_names)):
        raise UserError(
            f"head: expected weights of the {len(class_names)} classes of the data ({class_names[0]}, ...), found "
            f"{len(card.class_names)} ({card.class_names[0]}, ...); for a new head add --config.head=new"
        )


def _for_input(kernel, channels: int, order: str) -> tuple[jax.Array, list[str]]:
    """The first kernel for images in the order RGB, or for grey ones; and what was done, in words."""
    adapted = []
    if order == "BGR":
        kernel, adapted = kernel[:, :, ::-1], ["its input channels from BGR to RGB"]
    if (kernel.shape[2], channels) == (3, 1):
        return kernel.sum(axis=2, keepdims=True), [*adapted, "its three input channels summed for grey images"]
    if (kernel.shape[2], channels) == (1, 3):
        return jnp.repeat(kernel / 3, 3, axis=2), [*adapted, "its one input channel shared by three"]
    return kernel, adapted


def _for_channels(values, order: str, channels: int) -> tuple[float, ...]:
    values = list(values)[::-1] if order == "BGR" else list(values)
    return tuple(values) if len(values) == channels else (float(np.mean(values)),) * channels
