"""What a trained net says of each example of a data set, from several views of it if so asked."""

import collections
import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.build import build_data, evaluation_views
from resnet_jax.data.archives import open_evaluation_set
from resnet_jax.data.sources import dataset_facts, open_splits
from resnet_jax.data.stream import check_damaged, name_damaged, read_ahead, read_views
from resnet_jax.environment import use_compilation_cache
from resnet_jax.errors import UserError
from resnet_jax.predictions import Predictions, judge
from resnet_jax.runs import load_checkpoint
from resnet_jax.workdir import read_config

_PIXELS = 64 * 224 * 224  # in a batch: whole images at many scales come in more than a hundred shapes, which all wait


def predict(
    workdir: str,
    split: str = "test",
    step: str | int = "best",
    *,
    ema: bool = False,
    data: str | None = None,
    data_dir: str | None = None,
    view: str = "center",
    flip: bool = False,
) -> Predictions:
    """What a checkpoint says of each example.

    Args:
      workdir: of the run.
      split: "train", "validation" or "test".
      step: "best" on the validation split, "latest", or a number.
      ema: the moving average of the weights.
      data: instead of the split, another data set with the classes of the run's; see `open_evaluation_set`.
      data_dir: where the data are; default: where the run found its own, if TensorFlow Datasets prepared those.
      view: a key of `crops.EVALUATION_VIEWS`; the probabilities that several views of an image give are averaged.
      flip: average over the mirror images, too.

    Raises:
      UserError: no run, split, step or data; a view that these images do not have; too many damaged images.
    """
    use_compilation_cache()
    model, variables = load_checkpoint(workdir, step, ema=ema)
    config = read_config(workdir)
    if data_dir is not None and data is None:
        config.data.data_dir = data_dir
    facts = dataset_facts(config.data.name, config.data.data_dir)
    possible = None
    if data is None:
        splits = open_splits(config.data.name, config.data.validation_size, config.data.data_dir)
        if split not in splits:
            raise UserError(f"--split: expected one of {', '.join(splits)}, found {split!r}")
        source = splits[split]
    else:
        of_run = None if config.data.name in ("folder", "tar") else config.data.data_dir
        source, possible = open_evaluation_set(data, data_dir or of_run, facts.class_names)
    views = evaluation_views(config, view)
    _, prepare = build_data(config)

    @jax.jit
    def probabilities(images):
        logits = model.apply(variables, prepare(images), train=False).astype(jnp.float32)
        if possible is not None:
            logits = jnp.where(possible, logits, -jnp.inf)
        return jax.nn.softmax(logits)

    def averaged(images):
        given = [images, images[:, :, ::-1]] if flip else [images]
        return np.mean([np.asarray(probabilities(each), np.float64) for each in given], axis=0)

    most = min(config.eval.batch_size, len(source))
    labels, damaged, judged = [], [], {}

    def remembered():
        read = functools.partial(read_views, source, views)
        for index, (images, label) in enumerate(read_ahead(read, len(source), config.data.num_workers)):
            labels.append(tuple(np.atleast_1d(label).tolist()))
            if not images:
                judged[index] = (-1, False, math.log(facts.num_classes))
                damaged.append(index)
                name_damaged(source, np.array([index]))
                check_damaged(len(damaged), len(source), config.data.max_damaged)
            yield index, images

    for index, mean in _mean_over_views(remembered(), averaged, most):
        with np.errstate(divide="ignore"):
            judged[index] = judge(np.log(mean), labels[index])
    predicted, in_top5, losses = zip(*(judged[index] for index in range(len(source))), strict=True)
    names = [source.name(index) for index in range(len(source))]
    return Predictions(names, labels, np.array(predicted), np.array(in_top5), np.array(losses))


def _mean_over_views(
    examples: Iterator[tuple[int, list[np.ndarray]]], probabilities: Callable, most: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, mean probabilities) of each example, in any order, with up to `most` views of a shape at a time."""
    waiting = collections.defaultdict(list)  # by shape: (index, view)
    expected, total, seen = {}, collections.defaultdict(float), collections.Counter()

    def batch_size(shape):
        return max(1, min(most, _PIXELS // (shape[0] * shape[1])))

    def work_on(shape):
        indices, views = zip(*waiting.pop(shape), strict=True)
        padding = [np.zeros(shape, np.uint8)] * (batch_size(shape) - len(views))  # so that it is compiled once
        for index, found in zip(indices, probabilities(np.stack([*views, *padding])), strict=False):
            total[index] = total[index] + found
            seen[index] += 1
            if seen[index] == expected[index]:
                yield index, total.pop(index) / expected.pop(index)

    for index, views in examples:
        expected[index] = len(views)
        for view in views:
            waiting[view.shape].append((index, view))
            if len(waiting[view.shape]) == batch_size(view.shape):
                yield from work_on(view.shape)
    for shape in list(waiting):
        yield from work_on(shape)
