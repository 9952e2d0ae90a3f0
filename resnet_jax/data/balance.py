"""Rare classes: drawn more often, or weighed more in the loss."""

import ast
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.order import epoch_order
from resnet_jax.errors import UserError


def balanced_order(key: jax.Array, epoch: int | jax.Array, ids: jax.Array, counts: jax.Array) -> jax.Array:
    """As many draws as there are examples, each class as often as every other (to one), int32 (num_examples,).

    An example of a rare class is drawn several times, with replacement.

    Args:
      key, epoch: see `epoch_order`.
      ids: int (num_examples,), the example ids, sorted by class.
      counts: int (classes,), number of examples of each class, all above 0.
    """
    ids, counts = jnp.asarray(ids), jnp.asarray(counts)
    class_key, place_key = jax.random.split(jax.random.fold_in(key, epoch))
    classes = jax.random.permutation(class_key, jnp.arange(len(ids)) % len(counts))
    places = jnp.floor(jax.random.uniform(place_key, (len(ids),)) * counts[classes]).astype(jnp.int32)
    places = jnp.minimum(places, counts[classes] - 1)  # where rounding gives 1
    return ids[jnp.cumsum(counts)[classes] - counts[classes] + places]


def make_order(labels: np.ndarray | None, num_examples: int, num_classes: int, balanced: bool = False) -> Callable:
    """The function `(key, epoch) -> ids`: each example once, or `balanced` between classes.

    Raises:
      UserError: labels that are not known, or a class without examples.
    """
    if not balanced:
        return functools.partial(epoch_order, num_examples=num_examples)
    if labels is None:
        raise UserError("data.balanced: expected data whose labels are known without reading all; take a folder or tar")
    counts = np.bincount(labels, minlength=num_classes).astype(np.int32)
    if not counts.all():
        raise UserError(f"data.balanced: expected examples of every class, found none of class {counts.argmin()}")
    return functools.partial(balanced_order, ids=np.argsort(labels, kind="stable").astype(np.int32), counts=counts)


def class_weights(setting: str, labels: np.ndarray | None, num_classes: int) -> tuple[float, ...] | None:
    """The weight of each class.

    >>> class_weights("inverse", np.array([0, 0, 0, 1]), 2)
    (0.6666666666666666, 2.0)

    Args:
      setting: "none"; "inverse", n / (classes * examples of the class), which is 1 on average over the examples; or
        numbers with commas, one for each class.
      labels: int (n,) of the training split, or None where they are not known.
      num_classes: number of classes.

    Returns:
      One number for each class, or None.

    Raises:
      UserError: another setting, or labels that are not known.
    """
    if setting == "none":
        return None
    if setting == "inverse":
        counts = None if labels is None else np.bincount(labels, minlength=num_classes)
        if counts is None or not counts.all():
            found = "labels that are not known before all is read" if counts is None else f"{counts.tolist()}"
            raise UserError(f"train.class_weights: inverse needs the number of examples of each class, found {found}")
        return tuple((len(labels) / (num_classes * counts)).tolist())
    try:
        weights = tuple(map(float, ast.literal_eval(f"({setting.strip('()')},)")))
        if len(weights) != num_classes or not all(0 <= weight < np.inf for weight in weights) or not any(weights):
            raise ValueError
    except (ValueError, SyntaxError, TypeError):
        raise UserError(
            f"train.class_weights: expected none, inverse or {num_classes} numbers of 0 or more like 1,2.5, one for "
            f"each class, found {setting!r}"
        ) from None
    return weights
