"""The pure train and eval steps: `(state, batch, key) -> (state, sums)`."""

from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import optax

from resnet_jax.errors import UserError
from resnet_jax.metrics import class_sums, classification_sums


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: int32, number of updates done.
      params, batch_stats: the model's variables.
      opt_state: of the Optax optimizer.
      ema: moving averages {"params", "batch_stats"} of the two, or None.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema: dict | None

    @property
    def variables(self) -> dict:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(model, optimizer: optax.GradientTransformation, key: jax.Array, images, with_ema: bool) -> TrainState:
    """Initial state; `images` gives the shape (1, h, w, c)."""
    variables = model.init(key, images, train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        # A copy, since the state's memory is donated and no array may be in it twice.
        ema=jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if with_ema else None,
    )


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The loss of a yes or no to each class, averaged over classes: timm's BinaryCrossEntropy.

    Wightman et al. 2021, "ResNet strikes back" (arXiv:2110.00476, section 2). Being a mean of many, it has small
    gradients; the LAMB of that paper does not mind, SGD wants a larger learning rate.
    """
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


# (float32 logits (b, classes), float32 targets (b, classes)) -> losses (b,)
LOSSES = {"softmax": optax.softmax_cross_entropy, "bce": binary_cross_entropy}


def identity(tree):
    """The mean, and the sum, over one device."""
    return tree


def make_train_step(
    model,
    optimizer: optax.GradientTransformation,
    *,
    loss: str = "softmax",
    label_smoothing: float = 0.0,
    bce_threshold: float | None = None,
    microbatches: int = 1,
    ema_decay: float = 0.0,
    mean: Callable = identity,
    sum: Callable = identity,
) -> Callable:
    """A function `(state, batch, key) -> (state, sums)` that updates the weights once.

    The batch holds this device's `image`, float32 (b, h, w, c), `target`, float32 (b, classes), and maybe `damaged`,
    bool (b,). The key, this device's for this step, is that of dropout.

    Args:
      model: called with `train=True`.
      optimizer: from Optax.
      loss: a key of `LOSSES`, the loss that is minimised. The reported loss is that same loss.
      label_smoothing: share of the target that is spread evenly over all classes in that loss.
      bce_threshold: for the loss "bce", mixed and smoothed targets above it, like 0.2, become 1 and the others 0: where
        two images are mixed, both classes are right. None leaves them as they are.
      microbatches: the batch is worked through in so many parts, one after another, and their gradients averaged:
        the memory of a part, the update of the whole. Batch statistics are those of a part.
      ema_decay: of the moving average of weights and running statistics. It starts lower, at (1 + t) / (10 + t), so
        that the initial weights are forgotten.
      mean, sum: over devices.

    Returns:
      The step. Its sums are those of `classification_sums` over the global batch, `damaged` (how many images),
      `grad_norm` (of the averaged gradient, before clipping) and `param_norm` (after the update).

    Raises:
      UserError: a threshold for another loss.
    """
    if bce_threshold is not None and loss != "bce":
        raise UserError(f"bce_threshold: expected None with loss={loss!r}, found {bce_threshold}; try loss='bce'")

    def loss_and_sums(params, batch_stats, images, targets, key):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})
        loss_targets = optax.smooth_labels(targets, label_smoothing)
        if bce_threshold is not None:
            loss_targets = (loss_targets > bce_threshold).astype(jnp.float32)
        sums = classification_sums(logits, targets, jnp.ones(len(images), bool))
        sums["loss"] = jnp.sum(LOSSES[loss](logits.astype(jnp.float32), loss_targets))
        return sums["loss"] / len(images), (updated.get("batch_stats", {}), sums)

    gradient = jax.grad(loss_and_sums, has_aux=True)

    def accumulate(params, batch_stats, images, targets, key):
        def one_part(batch_stats, part):
            grads, (batch_stats, sums) = gradient(params, batch_stats, *part)
            return batch_stats, (grads, sums)

        parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), (images, targets))
        keys = jax.random.split(key, microbatches)
        batch_stats, (grads, sums) = jax.lax.scan(one_part, batch_stats, (*parts, keys))
        grads = jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)
        return grads, (batch_stats, jax.tree.map(lambda s: jnp.sum(s, axis=0), sums))

    def train_step(state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, dict]:
        compute = gradient if microbatches == 1 else accumulate
        grads, (batch_stats, sums) = compute(state.params, state.batch_stats, batch["image"], batch["target"], key)
        sums["damaged"] = jnp.sum(_damaged(batch), dtype=jnp.float32)
        grads, batch_stats, sums = mean(grads), mean(batch_stats), sum(sums)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = optax.incremental_update({"params": params, "batch_stats": batch_stats}, ema, 1 - decay)
        sums["grad_norm"], sums["param_norm"] = optax.tree.norm(grads), optax.tree.norm(params)
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), sums

    return train_step


def make_eval_step(model, *, sum: Callable = identity) -> Callable:
    """A function `(variables, batch) -> sums`; the batch holds `image`, `target`, `mask` and maybe `damaged`.

    An image that is `damaged` (bool (b,), beside the mask) counts as a wrong answer, and with the loss of a guess.
    The sums are those of `classification_sums` and `class_sums`, and `damaged`.
    """

    def eval_step(variables: dict, batch: dict) -> dict:
        logits = model.apply(variables, batch["image"], train=False)
        damaged = _damaged(batch)
        scored = (logits, batch["target"], batch["mask"] & ~damaged)
        sums = {**classification_sums(*scored), **class_sums(*scored)}
        sums["damaged"] = jnp.sum(damaged, dtype=jnp.float32)
        sums["count"] += sums["damaged"]
        sums["loss"] += sums["damaged"] * jnp.log(float(logits.shape[-1]))
        sums["class_count"] += jnp.sum(batch["target"] * damaged[:, None], axis=0)
        return sum(sums)

    return eval_step


def _damaged(batch):
    return batch.get("damaged", jnp.zeros(len(batch["image"]), bool))
