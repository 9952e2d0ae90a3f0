"""Metrics: one row for each example, from which every score is read."""

from collections.abc import Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax


def example_rows(logits: jax.Array, right: jax.Array) -> dict[str, jax.Array]:
    """The row of each example.

    Args:
      logits: (b, classes); computed with in float32.
      right: bool (b, classes), the classes that are right: one, or for ImageNet-ReaL any number.

    Returns:
      `prediction`, int32 (b,), the most probable class, -1 if a logit is not finite (the argmax of NaN is class 0);
      `correct` and `in_top5`, bool (b,), never True then; `loss`, float32 (b,), minus the logarithm of the probability
      of the right classes, in nats; 0 without a right class.
    """
    chex.assert_rank(logits, 2)
    chex.assert_equal_shape([logits, right])
    logits = logits.astype(jnp.float32)
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    _, top5 = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    prediction = jnp.argmax(logits, axis=-1)
    right_log_probabilities = jnp.where(right, jax.nn.log_softmax(logits), -jnp.inf)
    loss = jnp.where(jnp.any(right, axis=-1), -jax.nn.logsumexp(right_log_probabilities, axis=-1), 0.0)
    return {
        "prediction": jnp.where(finite, prediction, -1).astype(jnp.int32),
        "correct": jnp.take_along_axis(right, prediction[:, None], axis=-1)[:, 0] & finite,
        "in_top5": jnp.any(jnp.take_along_axis(right, top5, axis=-1), axis=-1) & finite,
        "loss": loss,
    }


def corrupt_rows(rows: Mapping, corrupt: jax.Array, num_classes: int) -> dict[str, jax.Array]:
    """The rows with wrong answers, and the loss of a guess, for images that could not be decoded, bool (b,)."""
    return {
        "prediction": jnp.where(corrupt, -1, rows["prediction"]),
        "correct": rows["correct"] & ~corrupt,
        "in_top5": rows["in_top5"] & ~corrupt,
        "loss": jnp.where(corrupt, jnp.log(float(num_classes)), rows["loss"]),
    }


def scores(rows: Mapping[str, np.ndarray], counts: np.ndarray | None = None) -> dict[str, float]:
    """`loss` (nats per example), `accuracy` and `top5` (fractions) over rows, in float64.

    Args:
      rows: from `example_rows`, on the host.
      counts: bool (n,), the examples that count; default: all.
    """
    counted = slice(None) if counts is None else counts
    means = {name: np.asarray(rows[name][counted], np.float64).mean() for name in ("loss", "correct", "in_top5")}
    return {"loss": float(means["loss"]), "accuracy": float(means["correct"]), "top5": float(means["in_top5"])}


def per_class_accuracy(correct: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Accuracy on the examples of each class, by name; NaN for a class without examples."""
    count = np.bincount(labels, minlength=len(class_names))
    right = np.bincount(labels[correct], minlength=len(class_names))
    with np.errstate(invalid="ignore"):
        return dict(zip(class_names, (right / count).tolist(), strict=True))


def training_sums(logits: jax.Array, targets: jax.Array, losses: jax.Array) -> dict[str, jax.Array]:
    """Sums over a training batch, float32 scalars: they add up over devices, microbatches and steps without weights.

    Args:
      logits: (b, classes).
      targets: float32 (b, classes), rows that sum to one; the largest entry is the label.
      losses: float32 (b,), of the objective.

    Returns:
      `loss`, `correct`, `correct5` and `count`.
    """
    rows = example_rows(logits, jax.nn.one_hot(jnp.argmax(targets, axis=-1), targets.shape[-1], dtype=bool))
    return {
        "loss": jnp.sum(losses),
        "correct": jnp.sum(rows["correct"], dtype=jnp.float32),
        "correct5": jnp.sum(rows["in_top5"], dtype=jnp.float32),
        "count": jnp.float32(len(logits)),
    }


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The loss of a yes or no to each class, averaged over classes: timm's BinaryCrossEntropy.

    Wightman et al. 2021, "ResNet strikes back" (arXiv:2110.00476, section 2). Being a mean of many, it has small
    gradients; the LAMB of that paper does not mind, SGD wants a larger learning rate.
    """
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


# Objectives: (float32 logits (b, classes), float32 targets (b, classes)) -> losses (b,)
LOSSES = {"softmax": optax.softmax_cross_entropy, "bce": binary_cross_entropy}
