"""The most probable classes of a stream of images."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.errors import DivergedError
from resnet_jax.evaluation.cam import activation_map
from resnet_jax.evaluation.images import View


class Classified(NamedTuple):
    """An image, and what a model says of it.

    Attributes:
      view: what the model saw; if it has a problem, there is nothing else.
      labels: int32 (top,), the most probable classes, the best first.
      probabilities: float32 (top,).
      heat: float32 (h, w), the class activation map of the best class; None if nobody asked.
    """

    view: View
    labels: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    heat: np.ndarray | None = None


def classify(
    model,
    variables: dict,
    preprocessing: Preprocessing,
    views: Iterable[View],
    *,
    batch_size: int,
    top: int,
    maps: bool = False,
) -> Iterator[Classified]:
    """The classes of each image, in order; views with a problem may come up to two batches earlier.

    One batch is computed while the next is filled, so that memory does not depend on the number of images. The last is
    padded: one program is compiled.

    Args:
      model, variables, preprocessing: as from `load_checkpoint` and `preprocessing`.
      views: see `images.read_views`.
      batch_size: images that are computed at once.
      top: how many classes.
      maps: give class activation maps, too; see `cam.activation_map`.

    Raises:
      DivergedError: the model gives probabilities that are not finite.
    """

    @jax.jit
    def compute(variables, views):
        images = preprocessing.normalize(views)
        logits = model.apply(variables, images, train=False).astype(jnp.float32)
        probabilities, labels = jax.lax.top_k(jax.nn.softmax(logits), top)
        heat = activation_map(model, variables, images, labels[:, 0]) if maps else None
        return labels, probabilities, heat

    def start():
        batch = np.zeros((batch_size, *preprocessing.view_shape), np.uint8)  # new memory: JAX may alias it
        for place, view in enumerate(waiting):
            batch[place] = view.pixels
        return waiting, compute(variables, batch)

    waiting, computing = [], None
    for view in views:
        if view.problem:
            yield Classified(view)
            continue
        waiting.append(view)
        if len(waiting) == batch_size:
            started, waiting = start(), []
            yield from _rows(computing)
            computing = started
    last = start() if waiting else None
    yield from _rows(computing)
    yield from _rows(last)


def _rows(computing: tuple[list[View], tuple] | None) -> Iterator[Classified]:
    """The images of a batch, waiting for the device; nothing if there is no batch."""
    if computing is None:
        return
    views, results = computing
    labels, probabilities, heat = jax.device_get(results)
    if not np.isfinite(probabilities[: len(views)]).all():
        raise DivergedError(f"{views[0].path}: the model gives probabilities that are not finite; try another --step")
    for place, view in enumerate(views):
        yield Classified(view, labels[place], probabilities[place], None if heat is None else heat[place])
