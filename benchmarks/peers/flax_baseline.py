"""A plain Flax ResNet and its training step, in the manner of Flax's ImageNet example: what one would write first."""

import functools
import json
import sys
from collections.abc import Callable, Sequence

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from resnet_jax.commands import command_line
from resnet_jax.errors import UserError


class Block(nn.Module):
    """A branch, and the input or its projection."""

    features: int
    conv: Callable
    norm: Callable
    strides: int = 1

    @nn.compact
    def __call__(self, x):
        y = self.branch(x)
        if x.shape != y.shape:
            x = self.norm()(self.conv(y.shape[-1], (1, 1), (self.strides, self.strides))(x))
        return nn.relu(x + y)


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    def branch(self, x):
        y = nn.relu(self.norm()(self.conv(self.features, (3, 3), (self.strides, self.strides))(x)))
        return self.norm(scale_init=nn.initializers.zeros)(self.conv(self.features, (3, 3))(y))


class BottleneckBlock(Block):
    """1x1, 3x3 and 1x1 convolutions."""

    def branch(self, x):
        y = nn.relu(self.norm()(self.conv(self.features, (1, 1))(x)))
        y = nn.relu(self.norm()(self.conv(self.features, (3, 3), (self.strides, self.strides))(y)))
        return self.norm(scale_init=nn.initializers.zeros)(self.conv(4 * self.features, (1, 1))(y))


class ResNet(nn.Module):
    """Stem, stages, mean, head."""

    stage_sizes: Sequence[int]
    block: type[nn.Module]
    num_classes: int
    features: int = 64
    small_images: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype
        )
        if self.small_images:
            x = nn.relu(norm()(conv(self.features, (3, 3))(x)))
        else:
            x = nn.relu(norm()(conv(self.features, (7, 7), (2, 2), padding=[(3, 3), (3, 3)])(x)))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, blocks in enumerate(self.stage_sizes):
            for index in range(blocks):
                strides = 2 if stage and not index else 1
                x = self.block(self.features * 2**stage, conv, norm, strides)(x)
        x = nn.Dense(self.num_classes, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))
        return jnp.asarray(x, jnp.float32)


NETS = {
    "resnet20": functools.partial(ResNet, (3, 3, 3), BasicBlock, features=16, small_images=True),
    "resnet18": functools.partial(ResNet, (2, 2, 2, 2), BasicBlock),
    "resnet34": functools.partial(ResNet, (3, 4, 6, 3), BasicBlock),
    "resnet50": functools.partial(ResNet, (3, 4, 6, 3), BottleneckBlock),
    "resnet101": functools.partial(ResNet, (3, 4, 23, 3), BottleneckBlock),
    "resnet152": functools.partial(ResNet, (3, 8, 36, 3), BottleneckBlock),
}


def create_net(name: str, num_classes: int, **attributes) -> ResNet:
    """One of `NETS`.

    Raises:
      UserError: there is none of that name.
    """
    if name not in NETS:
        raise UserError(f"flax: expected one of {', '.join(NETS)}, found {name}")
    return NETS[name](num_classes=num_classes, **attributes)


@flax.struct.dataclass
class State:
    """What a step changes."""

    params: dict
    batch_stats: dict
    opt_state: optax.OptState


_OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def create_state(model: ResNet, size: int) -> State:
    """Random weights."""
    variables = model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)
    return State(variables["params"], variables["batch_stats"], _OPTIMIZER.init(variables["params"]))


def train_step(
    model: ResNet, state: State, images: jax.Array, labels: jax.Array, mean: Callable = lambda tree: tree
) -> tuple[State, jax.Array]:
    """One update by momentum SGD on the cross-entropy with L2 decay; (new state, loss).

    Args:
      model: net.
      state: weights and more.
      images: float (b, h, w, c).
      labels: int32 (b,).
      mean: mean over devices.
    """

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        targets = jax.nn.one_hot(labels, logits.shape[-1])
        decay = 0.5 * 1e-4 * sum(jnp.sum(p**2) for p in jax.tree.leaves(params) if p.ndim > 1)
        return jnp.mean(optax.softmax_cross_entropy(logits, targets)) + decay, updated["batch_stats"]

    (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    grads, batch_stats = mean(grads), mean(batch_stats)
    updates, opt_state = _OPTIMIZER.update(grads, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), batch_stats, opt_state), loss


def compile_train_step(
    name: str, size: int, batch: int, dtype: str, num_classes: int, **attributes
) -> tuple[Callable, State]:
    """(compiled step, its state): for one device, of a net with other attributes."""
    model = create_net(name, num_classes, dtype=jnp.dtype(dtype), **attributes)
    state = jax.jit(functools.partial(create_state, model, size))()
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.dtype(dtype))
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    step = jax.jit(functools.partial(train_step, model), donate_argnums=0)
    return step.lower(state, images, labels).compile(), state


def training(name: str, size: int, batch: int, dtype: str, *, num_classes: int, steps: int) -> Callable:
    """A function that trains `steps` steps on one batch of noise."""
    step, state = compile_train_step(name, size, batch, dtype, num_classes)
    images = jax.random.normal(jax.random.key(1), (batch, size, size, 3), jnp.dtype(dtype))
    labels = jnp.arange(batch, dtype=jnp.int32) % num_classes

    def train():
        nonlocal state
        for _ in range(steps):
            state, loss = step(state, images, labels)
        jax.block_until_ready((state, loss))

    return train


def main() -> None:
    """Train once for each line of the input, and answer each with a line: for `flax_process`."""
    case, settings = json.loads(sys.argv[1])
    with command_line():
        train = training(*case, **settings)
        for _ in sys.stdin:
            train()
            print("trained", flush=True)


if __name__ == "__main__":
    main()
