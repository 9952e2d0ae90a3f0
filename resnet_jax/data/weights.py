"""Weights of classes in the loss."""

import ast

import numpy as np

from resnet_jax.errors import UserError


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
