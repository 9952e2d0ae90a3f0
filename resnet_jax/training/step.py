"""The training step and the evaluation step: pure functions of arrays."""

from collections.abc import Callable, Sequence
from typing import Protocol

import chex
import flax
import jax
import jax.numpy as jnp
import optax

from resnet_jax.errors import UserError
from resnet_jax.training.metrics import LOSSES, corrupt_rows, example_rows, training_sums


@flax.struct.dataclass
class TrainState:
    """Everything that training changes, and everything that differs between runs of one program.

    Attributes:
      step: int32, number of updates done.
      params, batch_stats: model variables.
      opt_state: state of the Optax optimizer; it holds the peak learning rate.
      ema: moving averages {"params", "batch_stats"} of the two, or None.
      key: typed PRNG key of augmentation and dropout; never changed, folded with the step.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema: dict | None
    key: jax.Array

    @property
    def variables(self) -> dict:
        """The first argument of `model.apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    model, optimizer: optax.GradientTransformation, init_key: jax.Array, key: jax.Array, images, with_ema: bool
) -> TrainState:
    """Initial state; `images` gives the shape (1, h, w, c), `init_key` the weights, `key` is kept."""
    variables = model.init(init_key, images, train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        # A copy, since the state's memory is donated and no array may be in it twice.
        ema=jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if with_ema else None,
        key=key,
    )


class Devices(Protocol):
    """The other devices, seen from inside a step; `parallel.DataParallel` and `ONE_DEVICE` are such."""

    def shard(self) -> int | jax.Array:
        """Index of this device's part of the batch."""

    def mean(self, tree):
        """Mean over devices."""

    def sum(self, tree):
        """Sum over devices."""

    def all_gather(self, tree):
        """Arrays of all devices, one after another along the first axis."""


class _OneDevice:
    def shard(self):
        return 0

    def _identity(self, tree):
        return tree

    mean = sum = all_gather = _identity


ONE_DEVICE = _OneDevice()


def make_batch_fn(gather: Callable, augment: Callable, devices: Devices = ONE_DEVICE) -> Callable:
    """A function `(state, inputs) -> (batch, dropout key)` that makes this device's part of the batch of a step.

    Args:
      gather: `(inputs, step, shard) -> batch` of stored images: `image`, `label`, `position`, and maybe `corrupt`.
      augment: `(key, batch) -> batch` with `image`, float32 (b, h, w, c), and `target`, float32 (b, classes).
      devices: see there.
    """

    def batch_of(state: TrainState, inputs) -> tuple[dict, jax.Array]:
        key, shard = jax.random.fold_in(state.key, state.step), devices.shard()
        batch = augment(key, gather(inputs, state.step, shard))
        return batch, jax.random.fold_in(jax.random.fold_in(key, 2), shard)

    return batch_of


def make_train_step(
    model,
    optimizer: optax.GradientTransformation,
    *,
    batch_of: Callable = lambda state, inputs: (inputs, state.key),
    devices: Devices = ONE_DEVICE,
    ema_decay: float = 0.0,
    **objective,
) -> Callable:
    """A function `(state, inputs) -> (state, sums)` that updates the weights once.

    Args:
      model: called with `train=True`.
      optimizer: from `optim.make_optimizer`, or any of Optax.
      batch_of: from `make_batch_fn`; by default inputs are the batch.
      devices: see there.
      ema_decay: decay of the moving average of weights and running statistics. It starts lower, at (1 + t) / (10 + t),
        so that the initial weights are forgotten.
      **objective: see `make_gradient`.

    Returns:
      The step. Its sums are those of `training_sums` over the global batch, `corrupt` (number of images), `grad_norm`
      (of the averaged gradient, before clipping) and `param_norm` (after the update).
    """
    gradient = make_gradient(model, **objective)

    def train_step(state: TrainState, inputs) -> tuple[TrainState, dict]:
        batch, key = batch_of(state, inputs)
        grads, (batch_stats, sums) = gradient(state.params, state.batch_stats, batch, key)
        grads, batch_stats, sums = devices.mean(grads), devices.mean(batch_stats), devices.sum(sums)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = optax.incremental_update({"params": params, "batch_stats": batch_stats}, ema, 1 - decay)
        sums["grad_norm"], sums["param_norm"] = optax.tree.norm(grads), optax.tree.norm(params)
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema, state.key), sums

    return train_step


def make_gradient(
    model,
    *,
    loss: str = "softmax",
    label_smoothing: float = 0.0,
    bce_threshold: float | None = None,
    grad_accum_steps: int = 1,
    class_weights: Sequence[float] | None = None,
    frozen: Callable | None = None,
) -> Callable:
    """A function `(params, batch_stats, batch, key) -> (grads, (batch_stats, sums))` of the mean loss of a batch.

    Args:
      model: called with `train=True`.
      loss: a key of `LOSSES`, the loss that is minimised. The reported loss is that same loss.
      label_smoothing: share of the target that is spread evenly over all classes in that loss.
      bce_threshold: for the loss "bce", mixed and smoothed targets above it, like 0.2, become 1 and the others 0: where
        two images are mixed, both classes are right. None leaves them as they are.
      grad_accum_steps: number of microbatches, worked through one after another, whose gradients are averaged: the
        memory of one, the update of all. Batch statistics are those of a microbatch.
      class_weights: factor of the loss of each class; of mixed images, by their shares. None is 1 for all.
      frozen: function from parameters to a tree of bools, True for those whose gradient is zero, without its cost.

    Raises:
      UserError: a threshold for another loss.
    """
    if bce_threshold is not None and loss != "bce":
        raise UserError(f"bce_threshold: expected None with loss={loss!r}, found {bce_threshold}; try loss='bce'")

    def loss_and_sums(params, batch_stats, images, targets, key):
        variables = {"params": _held(params, frozen), "batch_stats": batch_stats}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})
        losses = LOSSES[loss](logits.astype(jnp.float32), _loss_targets(targets, label_smoothing, bce_threshold))
        if class_weights is not None:
            losses *= targets @ jnp.asarray(class_weights, jnp.float32)
        sums = training_sums(logits, targets, losses)
        return sums["loss"] / len(images), (updated.get("batch_stats", {}), sums)

    gradient = jax.grad(loss_and_sums, has_aux=True)

    def accumulate(params, batch_stats, images, targets, key):
        def one_microbatch(batch_stats, microbatch):
            grads, (batch_stats, sums) = gradient(params, batch_stats, *microbatch)
            return batch_stats, (grads, sums)

        microbatches = jax.tree.map(lambda x: x.reshape(grad_accum_steps, -1, *x.shape[1:]), (images, targets))
        keys = jax.random.split(key, grad_accum_steps)
        batch_stats, (grads, sums) = jax.lax.scan(one_microbatch, batch_stats, (*microbatches, keys))
        grads = jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)
        return grads, (batch_stats, jax.tree.map(lambda s: jnp.sum(s, axis=0), sums))

    def gradient_and_sums(params, batch_stats, batch, key):
        chex.assert_rank([batch["image"], batch["target"]], [4, 2])
        chex.assert_equal_shape_prefix([batch["image"], batch["target"]], 1)
        compute = gradient if grad_accum_steps == 1 else accumulate
        grads, (batch_stats, sums) = compute(params, batch_stats, batch["image"], batch["target"], key)
        return grads, (batch_stats, {**sums, "corrupt": jnp.sum(_corrupt(batch), dtype=jnp.float32)})

    return gradient_and_sums


def _loss_targets(targets, label_smoothing, bce_threshold):
    smoothed = optax.smooth_labels(targets, label_smoothing)
    return smoothed if bce_threshold is None else (smoothed > bce_threshold).astype(jnp.float32)


def _held(params, frozen):
    if frozen is None:
        return params
    return jax.tree.map(lambda p, stays: jax.lax.stop_gradient(p) if stays else p, params, frozen(params))


def make_eval_step(
    model, *, gather: Callable = lambda inputs, shard: inputs, normalize=lambda images: images, devices=ONE_DEVICE
) -> Callable:
    """A function `(variables, inputs) -> rows` of the examples of a global batch.

    Args:
      model: called with `train=False`.
      gather: `(inputs, shard) -> batch`, this device's part: `image`, `label`, `mask` (False for padding) and maybe
        `corrupt`; all (b, ...).
      normalize: from stored images to model input.
      devices: see there.

    Returns:
      The step. Its rows are those of `example_rows`, and `mask` and `corrupt`, bool (b,). An image that is corrupt
      counts as a wrong answer, and with the loss of a guess.
    """

    def eval_step(variables: dict, inputs) -> dict:
        batch = gather(inputs, devices.shard())
        logits = model.apply(variables, normalize(batch["image"]), train=False)
        right = jax.nn.one_hot(batch["label"], logits.shape[-1], dtype=bool)
        corrupt = _corrupt(batch)
        rows = corrupt_rows(example_rows(logits, right), corrupt, logits.shape[-1])
        return devices.all_gather({**rows, "mask": batch["mask"], "corrupt": corrupt})

    return eval_step


def _corrupt(batch):
    return batch.get("corrupt", jnp.zeros(len(batch["image"]), bool))
