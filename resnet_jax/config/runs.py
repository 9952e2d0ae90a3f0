"""Finished runs in scripts: the model with its weights, its preprocessing, its data."""

import dataclasses
import functools
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.checkpoint import ModelCard, SavedSteps, read_step, unflatten
from resnet_jax.checkpoint.card import card_of, read_card
from resnet_jax.checkpoint.manifest import is_step, read_manifest
from resnet_jax.checkpoint.remote import local
from resnet_jax.config.stored import read_config
from resnet_jax.data.corrupt import check_corrupt, warn_corrupt
from resnet_jax.data.info import DatasetInfo
from resnet_jax.data.preprocessing import Preprocessing, mean_image
from resnet_jax.data.reader import prefetch
from resnet_jax.data.sampling import read_image
from resnet_jax.data.splits import PHOTO_MEAN, PHOTO_STD, check_same_classes, dataset_info, load_splits
from resnet_jax.errors import UserError
from resnet_jax.models import floating_dtype
from resnet_jax.weights.checks import reading
from resnet_jax.weights.hub import HUB
from resnet_jax.weights.native import SUFFIX, has_card, read_native, read_native_card
from resnet_jax.weights.pretrained import read_pretrained
from resnet_jax.workdir import absolute


def load_checkpoint(
    path: str | pathlib.Path, step: str | int = "best", *, ema: bool = False, dtype: object = None
) -> tuple[object, dict]:
    """A trained model and its weights. Needs neither its data nor its config file.

    >>> model, variables = load_checkpoint("runs/digits", step="best")
    >>> logits = model.apply(variables, images, train=False)

    Args:
      path: a run directory, the folder of one step in it (`checkpoints/1234`), a copy of either, or a `.safetensors`
        file that `python -m resnet_jax.convert` wrote; or the URL of one of these, like gs://bucket/run.
      step: "best" on the validation split, "latest", or a number; for a run directory.
      ema: the moving average of the weights instead of the weights.
      dtype: precision of the computation, "float32" or "bfloat16"; default: as in training. Weights are float32.

    Returns:
      (model, {"params", "batch_stats"}): float32 arrays on the default device.

    Raises:
      UserError: no run, no such step, a corrupt checkpoint, no moving average.
    """
    return load_model(path, step, ema=ema, dtype=dtype)[1:]


def load_model(
    path: str | pathlib.Path,
    step: str | int = "best",
    *,
    ema: bool = False,
    dtype: object = None,
    name: str | None = None,
    **settings,
) -> tuple[ModelCard, object, dict]:
    """(card, model, variables) of a checkpoint, or of weights of another library.

    Args:
      path, step, ema, dtype: see `load_checkpoint`.
      name: model of weights of another library; then `path` is theirs.
      **settings: for these, of `weights.pretrained.read_pretrained`.
    """
    if name is not None:
        check_one_set(step, ema)
        loaded = read_pretrained(name, path, dtype=dtype or jnp.float32, **settings)
        return loaded.card, loaded.model, loaded.variables
    with local(path, step) as here:
        card, variables = _read_native(here, ema) if here.is_file() else _read_step(here, step, ema)
    if dtype is not None:
        card = dataclasses.replace(card, model={**card.model, "dtype": floating_dtype(dtype).name})
    return card, card.create_model(), variables


def check_one_set(step: str | int, ema: bool) -> None:
    """Raise `UserError` for a choice among the weights of another library, of which a file holds one set."""
    if ema or step != "best":
        raise UserError("--step, --ema: expected them for a run of ours, found --model, weights of another; leave them")


def _read_native(path, ema) -> tuple[ModelCard, dict]:
    if ema:
        raise UserError(f"ema: {path} holds one set of weights; convert the run with --ema")
    return read_native(path)


def _read_step(path, step, ema) -> tuple[ModelCard, dict]:
    folder = _step_folder(path, step)
    items, manifest = read_step(folder, ("model",))
    card = _card_of_step(folder, manifest.card)
    with reading(folder, "a model card"):
        shapes = card.variable_shapes()
    has_ema = any(name.startswith("ema.") for name in items["model"])
    variables = unflatten({**shapes, "ema": shapes} if has_ema else shapes, items["model"], folder)
    if ema and not has_ema:
        raise UserError(f"ema: {path} kept no moving average of the weights (train.ema_decay was 0)")
    averaged = variables.pop("ema", None)
    return card, jax.tree.map(jnp.asarray, averaged if ema else variables)


def is_on_disk(source: str) -> bool:
    """True for a path; False for a URL, or a repository of the Hugging Face Hub."""
    return not source.startswith(HUB) and "://" not in source


def is_ours(source: str) -> bool:
    """True for a run, the folder of a step, or a file of ours; False for weights of another library.

    Args:
      source: value of `init_from`.

    Raises:
      UserError: a path at which there is nothing.
    """
    if not is_on_disk(source):
        return not source.startswith(HUB)
    path = absolute(source)
    if not path.exists():
        raise UserError(
            f"init_from: expected weights to begin with, found no {path}; train that run or get that file first, or "
            "name another: --config.init_from=PATH"
        )
    if path.suffix == SUFFIX and path.is_file():
        return has_card(path)
    return is_step(path) or (path / "card.json").exists() or (path / "config.json").exists()


def load_card(path: str | pathlib.Path, step: str | int = "best") -> ModelCard:
    """The model card of a run, of one step of it, or in a file.

    Raises:
      UserError: there is none.
    """
    with local(path, step) as here:
        if here.is_file():
            return read_native_card(here) if here.suffix == SUFFIX else read_card(here)
        folder = _step_folder(here, step)
        return _card_of_step(folder, read_manifest(folder).card)


def preprocessing(source: str | pathlib.Path | ModelCard | nn.Module) -> Preprocessing:
    """The function from images to a model's input; it knows the names of the classes, too.

    >>> preprocess = preprocessing("runs/photos")
    >>> logits = model.apply(variables, preprocess(["cat.jpg", "dog.png"]), train=False)
    >>> [preprocess.class_names[label] for label in logits.argmax(axis=-1)]

    Args:
      source: a path as `load_checkpoint` takes it, a model that `load_checkpoint` or `load_pretrained` gave, or a card.

    Raises:
      UserError: a path without a card, or a model from elsewhere.
    """
    if isinstance(source, nn.Module):
        return card_of(source).create_preprocessing()
    card = source if isinstance(source, ModelCard) else load_card(source)
    return card.create_preprocessing()


def load_data(path: str | pathlib.Path, split: str = "test") -> tuple[jax.Array, np.ndarray]:
    """A split of a run's data, prepared as the run prepared it for evaluation, all of it in memory.

    Args:
      path: as `load_checkpoint` takes it.
      split: "train", "validation" or "test".

    Returns:
      (images, labels): float32 (n, h, w, c), normalised, on the default device; int32 (n,). A corrupt image is black,
      and warned of.

    Raises:
      UserError: no run, no such split, data that are not prepared, too many corrupt images.
    """
    card = load_card(path)
    preprocess = card.create_preprocessing()
    splits = load_splits(**card.data)
    if split not in splits:
        raise UserError(f"split: expected one of {', '.join(splits)}, found {split!r}")
    source = splits[split]
    check_same_classes(source.class_names, card.class_names)
    images, labels = np.zeros((len(source), *preprocess.view_shape), np.uint8), np.empty(len(source), np.int32)
    corrupt = np.zeros(len(source), bool)
    for index, (image, label) in enumerate(prefetch(functools.partial(read_image, source), len(source))):
        corrupt[index], labels[index] = image is None, label
        if image is not None:
            images[index] = preprocess.center_view(image)
    warn_corrupt(source, np.flatnonzero(corrupt))
    check_corrupt(corrupt.sum(), len(source), card.max_corrupt)
    return jax.jit(preprocess.normalize)(images), labels


def _step_folder(path: str | pathlib.Path, step: str | int) -> pathlib.Path:
    """The folder of a step, from its own path or that of a run."""
    path = absolute(path)
    if is_step(path):
        return path
    card = read_card(path)
    if not path.exists():
        raise UserError(f"workdir: expected the folder of a run, found no {path}")
    if card is None and not (path / "config.json").exists():
        raise UserError(
            "workdir: expected the folder of a run, or of one step of it (like checkpoints/100), found neither "
            f"card.json nor config.json in {path}"
        )
    best_metric = card.best_metric if card else read_config(path).checkpoint.best_metric
    steps = SavedSteps(path, best_metric)
    return steps.path(steps.resolve(step))


def _card_of_step(folder: pathlib.Path, stored: dict | None) -> ModelCard:
    """The card beside the weights, which their digests cover; for a step of format 0, that of its run."""
    if stored:
        return ModelCard.from_json(stored, folder)
    workdir = folder.parent.parent
    if card := read_card(workdir):
        return card
    if not (workdir / "config.json").exists():
        raise UserError(f"{folder}: a checkpoint of format 0 has no card of its own; give the folder of its run")
    return _card_from_config(workdir)


def _card_from_config(workdir: pathlib.Path) -> ModelCard:
    """The card of a run of format 0, which had none. The mean image, if it is subtracted, is that of its data."""
    from resnet_jax.config.recipe import Recipe  # on use: it brings training code, which no other run needs

    config = read_config(workdir)
    data = config.data
    try:
        info = dataset_info(data.name, data.data_dir, data.test_size, data.use_validation_split)
    except UserError:  # the data are out of reach, and with them the names of the classes
        if config.model.num_classes is None:
            raise
        info = _unknown_info(config)
    mean = None
    if data.normalization == "pixel_mean":
        mean = mean_image(load_splits(data.name, data.validation_size, data.data_dir)["train"].images)
    return Recipe(config, info).card({"config": json.loads(config.to_json())}, mean)


def _unknown_info(config) -> DatasetInfo:
    names = tuple(f"class {label}" for label in range(config.model.num_classes))
    sizes = {"train": int(config.data.validation_size) + config.train.batch_size, "test": 1}  # any: nobody asks
    return DatasetInfo(names, None, sizes, PHOTO_MEAN, PHOTO_STD, None)
