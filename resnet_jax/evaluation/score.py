"""One row for each example of a dataset, from one view of it or several."""

import collections
import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.corrupt import check_corrupt, warn_corrupt
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.data.reader import prefetch
from resnet_jax.data.sampling import read_image
from resnet_jax.evaluation.predictions import Predictions
from resnet_jax.progress import Watch, unwatched
from resnet_jax.training.metrics import example_rows

_PIXELS = 64 * 224 * 224  # in a batch: whole images at many scales come in more than a hundred shapes, which all wait
_BATCH = 1000  # images
_LOWEST = float(np.finfo(np.float32).min)  # a logit of a class that is no option: finite, unlike that of a broken net


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A model that gives a row for each example.

    Attributes:
      model, variables: as from `load_checkpoint`.
      preprocessing: from images to model input.
      view: a key of `crops.EVALUATION_VIEWS`; the probabilities that several views of an image give are averaged.
      flip: average over the mirror images, too.
      max_corrupt: maximal share of corrupt images.
    """

    model: object
    variables: dict
    preprocessing: Preprocessing
    view: str = "center"
    flip: bool = False
    max_corrupt: float = 0.001

    def predict(self, source, possible: np.ndarray | None = None, watch: Watch = unwatched) -> Predictions:
        """The rows of a dataset, each example exactly once, in its order.

        Args:
          source: dataset; see `data.sources`.
          possible: bool (classes,), classes among which it is scored; default: all.
          watch: see `progress.watch`.

        Raises:
          UserError: a view that these images do not have; too many corrupt images.
        """
        classes = len(self.preprocessing.class_names)
        labels = [()] * len(source)
        rows = {  # those of an image that cannot be decoded: a wrong answer, with the loss of a guess
            "prediction": np.full(len(source), -1, np.int32),
            "correct": np.zeros(len(source), bool),
            "in_top5": np.zeros(len(source), bool),
            "loss": np.full(len(source), np.log(np.float32(classes))),
            "probability": np.zeros(len(source), np.float32),
        }
        waiting, examples = [], self._examples(source, labels, watch)
        apply, batch_size = self._apply(True if possible is None else possible), min(len(source), _BATCH)
        for index, logits in _joined(apply_by_shape(examples, apply, batch_size)):
            waiting.append((index, logits))
            if len(waiting) == batch_size:
                _judge(waiting, labels, rows, batch_size)
        _judge(waiting, labels, rows, batch_size)
        keys = [source.key(index) for index in range(len(source))]
        names = [self.preprocessing.class_names[label] if label >= 0 else "" for label in rows["prediction"]]
        judged = (rows["prediction"], rows["in_top5"], rows["loss"])
        return Predictions(keys, labels, *judged, names, rows["probability"])

    def _examples(self, source, labels, watch) -> Iterator[tuple[int, list[np.ndarray]]]:
        """(index, uint8 views) of the images that can be decoded; notes the labels of all."""

        def read(index):
            image, label = read_image(source, index)
            return [] if image is None else self.preprocessing.views(image, self.view), label

        corrupt = 0
        for index, (images, label) in enumerate(watch("scoring", prefetch(read, len(source)), len(source))):
            labels[index] = tuple(np.atleast_1d(label).tolist())
            if images:
                mirrored = [image[:, ::-1] for image in images] if self.flip else []
                yield index, [*images, *mirrored]
            else:
                corrupt += 1
                warn_corrupt(source, np.array([index]))
                check_corrupt(corrupt, len(source), self.max_corrupt)

    def _apply(self, possible):
        normalize = self.preprocessing.normalize

        @jax.jit
        def logits(variables, images):
            found = self.model.apply(variables, normalize(images), train=False).astype(jnp.float32)
            return jnp.where(possible, found, _LOWEST)

        return lambda images: np.asarray(logits(self.variables, images))


def _joined(views: Iterator[tuple[int, int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    """(index, logits) of each example, in any order; of several views the logarithm of their mean probability."""
    seen = collections.defaultdict(list)
    for index, total, logits in views:
        seen[index].append(logits)
        if len(seen[index]) == total:
            own = seen.pop(index)
            yield index, own[0] if total == 1 else _log_mean_probability(np.stack(own))


def _judge(waiting: list[tuple[int, np.ndarray]], labels: list[tuple[int, ...]], rows: dict, batch_size: int) -> None:
    """Turn (index, logits) into rows; the batch is padded, so that it is compiled once."""
    if not waiting:
        return
    indices = [index for index, _ in waiting]
    logits = np.zeros((batch_size, len(waiting[0][1])), np.float32)
    right = np.zeros(logits.shape, bool)
    for place, (index, values) in enumerate(waiting):
        logits[place] = values
        right[place, list(labels[index])] = True
    found = jax.device_get(_rows(logits, right))
    for name in rows:
        rows[name][indices] = found[name][: len(indices)]
    waiting.clear()


@jax.jit
def _rows(logits, right):
    probability = jnp.max(jax.nn.softmax(logits.astype(jnp.float32)), axis=-1)
    return {**example_rows(logits, right), "probability": probability}


def _log_mean_probability(logits: np.ndarray) -> np.ndarray:
    """float32 (classes,) from logits (views, classes)."""
    logs = np.asarray(jax.nn.log_softmax(logits.astype(np.float32)), np.float64)
    return np.float32(np.maximum(np.logaddexp.reduce(logs, axis=0) - np.log(len(logs)), _LOWEST))


def apply_by_shape(examples, apply, max_images: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """(index, number of views, logits) of each view, in any order, with up to `max_images` of a shape at a time.

    Args:
      examples: (index, views); views are uint8 (h, w, c) and may differ in shape.
      apply: from uint8 (b, h, w, c) to logits (b, classes); always called with the same b for a shape.
      max_images: upper bound of b.
    """
    waiting = collections.defaultdict(list)  # by shape: (index, number of views, view)

    def batch_size(shape):
        return max(1, min(max_images, _PIXELS // (shape[0] * shape[1])))

    def work_on(shape):
        indices, totals, views = zip(*waiting.pop(shape), strict=True)
        padding = [np.zeros(shape, np.uint8)] * (batch_size(shape) - len(views))  # so that it is compiled once
        yield from zip(indices, totals, apply(np.stack([*views, *padding])), strict=False)

    for index, views in examples:
        for view in views:
            waiting[view.shape].append((index, len(views), view))
            if len(waiting[view.shape]) == batch_size(view.shape):
                yield from work_on(view.shape)
    for shape in list(waiting):
        yield from work_on(shape)
