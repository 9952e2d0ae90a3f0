"""Metrics are sums and counts until the last line: they add up over devices, batches and steps without weights."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax


def classification_sums(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over a batch of what makes loss and accuracies.

    Args:
      logits: (b, classes); computed with in float32.
      targets: float32 (b, classes), rows that sum to one; the largest entry is the label.
      mask: bool (b,), False for examples that do not count.

    Returns:
      `loss` (cross-entropy), `correct`, `correct5` and `count`, float32 scalars. An example with a logit that is not
      finite is never correct (the argmax of NaN is class 0).
    """
    logits = logits.astype(jnp.float32)
    labels = jnp.argmax(targets, axis=-1)
    _, top5 = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    in_top5 = jnp.any(top5 == labels[:, None], axis=-1) & jnp.all(jnp.isfinite(logits), axis=-1)
    losses = optax.softmax_cross_entropy(logits, targets)
    return {
        # where, not a product: the loss of padding may be NaN, and 0 * NaN is NaN.
        "loss": jnp.sum(jnp.where(mask, losses, 0)),
        "correct": jnp.sum(_is_correct(logits, labels) & mask, dtype=jnp.float32),
        "correct5": jnp.sum(in_top5 & mask, dtype=jnp.float32),
        "count": jnp.sum(mask, dtype=jnp.float32),
    }


def class_sums(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """`class_correct` and `class_count`, float32 (classes,): the counts of `classification_sums` for each class."""
    labels = jnp.argmax(targets, axis=-1)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1]) * mask[:, None]
    return {"class_correct": _is_correct(logits, labels) @ one_hot, "class_count": jnp.sum(one_hot, axis=0)}


def _is_correct(logits, labels):
    return (jnp.argmax(logits, axis=-1) == labels) & jnp.all(jnp.isfinite(logits), axis=-1)


def add_sums(total: Mapping | None, sums: Mapping) -> dict[str, np.ndarray]:
    """Add on the host, in float64, so that the sum does not lose examples."""
    sums = {name: np.asarray(value, np.float64) for name, value in sums.items()}
    return sums if total is None else {name: total[name] + value for name, value in sums.items()}


def means(sums: Mapping) -> dict[str, float]:
    """`loss` (nats per example), `accuracy` and `top5` (fractions) from summed sums."""
    count = float(sums["count"])
    return {
        "loss": float(sums["loss"]) / count,
        "accuracy": float(sums["correct"]) / count,
        "top5": float(sums["correct5"]) / count,
    }


def per_class_accuracy(sums: Mapping) -> np.ndarray:
    """Accuracy on the examples of each class, float64 (classes,); NaN for a class without examples."""
    with np.errstate(invalid="ignore"):
        return np.asarray(sums["class_correct"]) / np.asarray(sums["class_count"])
