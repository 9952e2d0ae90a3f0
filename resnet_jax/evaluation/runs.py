"""Runs, or copies of them, scored on any data by their card and weights alone."""

import pathlib

import numpy as np

from resnet_jax.checkpoint import ModelCard
from resnet_jax.config.runs import load_card, load_model
from resnet_jax.data.splits import check_same_classes, load_splits
from resnet_jax.environment import memory_errors, use_compilation_cache
from resnet_jax.errors import UserError
from resnet_jax.evaluation.predictions import Predictions
from resnet_jax.evaluation.score import Scorer
from resnet_jax.evaluation.sets import open_evaluation_set
from resnet_jax.progress import Watch, unwatched


def predict(
    path: str | pathlib.Path,
    split: str = "test",
    step: str | int = "best",
    *,
    ema: bool = False,
    data: str | None = None,
    data_dir: str | None = None,
    view: str = "center",
    flip: bool = False,
    watch: Watch = unwatched,
) -> Predictions:
    """Per-example predictions of a checkpoint.

    Args:
      path: a run directory, the folder of one of its steps, or a copy of either.
      split: "train", "validation" or "test" of the data that the run was trained on.
      step: "best" on the validation split, "latest", or a number; for a run directory.
      ema: the moving average of the weights.
      data: instead of the split, another dataset with the same classes; see `sets.open_evaluation_set`. Then the
        training data are not needed.
      data_dir: where the data are; default: where the run found its own, if TensorFlow Datasets prepared those.
      view: a key of `crops.EVALUATION_VIEWS`; the probabilities that several views of an image give are averaged.
      flip: average over the mirror images, too.
      watch: see `progress.watch`.

    Raises:
      UserError: no run, split, step or data; a view that these images do not have; too many corrupt images.
    """
    use_compilation_cache()
    card, model, variables = load_model(path, step, ema=ema)
    source, possible = open_source(card, split, data, data_dir)
    scorer = Scorer(model, variables, card.create_preprocessing(), view, flip, card.max_corrupt)
    with memory_errors("--view center, or JAX_PLATFORMS=cpu in the environment"):
        return scorer.predict(source, possible, watch)


def evaluate(path: str | pathlib.Path, split: str = "test", step: str | int = "best", *, ema: bool = False) -> dict:
    """Scores of a checkpoint on a split as the run was scored, every example exactly once.

    Args:
      path, split, step, ema: see `predict`.

    Returns:
      {"loss", "accuracy", "top5", "count", "per_class": {class name: accuracy}}.

    Raises:
      UserError: see `predict`.
    """
    predictions = predict(path, split, step, ema=ema)
    return {**predictions.scores(), "per_class": predictions.per_class(load_card(path, step).class_names)}


def open_source(
    card: ModelCard, split: str, data: str | None, data_dir: str | None
) -> tuple[object, np.ndarray | None]:
    """The examples that `predict` scores, and the classes that are possible; see `sets.open_evaluation_set`."""
    if data is not None and _is_of_run(card, data):
        data, split = None, "test"  # the folder that training took, which it may have divided itself
    if data is not None:
        of_run = None if card.data["name"] in ("folder", "tar") else card.data["data_dir"]
        return open_evaluation_set(data, data_dir or of_run, card.class_names)
    splits = load_splits(**{**card.data, "data_dir": data_dir or card.data["data_dir"]})
    if split not in splits:
        raise UserError(f"--split: expected one of {', '.join(splits)}, found {split!r}")
    check_same_classes(splits[split].class_names, card.class_names)
    return splits[split], None


def _is_of_run(card: ModelCard, data: str) -> bool:
    if card.data["name"] != "folder":
        return False
    return pathlib.Path(data).expanduser().resolve() == pathlib.Path(card.data["data_dir"]).expanduser().resolve()
