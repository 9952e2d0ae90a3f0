"""Our nets as the benchmarks run them: training steps and forward passes on noise, and programs on small images."""

import functools
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax import fold_batchnorm
from resnet_jax.data.augment import augment_batch, normalize
from resnet_jax.models import create_model
from resnet_jax.training.parallel import DataParallel
from resnet_jax.training.program import Program
from resnet_jax.training.step import TrainState, create_state, make_batch_fn, make_eval_step, make_train_step

OPTIMIZER = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
_AUGMENTATION = {
    **{"policy": "none", "jitter": (0.0, 0.0, 0.0, 0.0), "lighting": 0.0},
    **{"pad_crop": 4, "flip": True, "cutout": 0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0},
}


def random_state(model: nn.Module, size: int, seed: int | jax.Array = 0) -> TrainState:
    """Random weights for square images, and the state of momentum SGD."""
    images, keys = jnp.zeros((1, size, size, 3)), jax.random.split(jax.random.key(seed))
    return jax.jit(lambda keys: create_state(model, OPTIMIZER, *keys, images, with_ema=False))(keys)


def training(
    name: str, size: int, batch: int, dtype: str, *, num_classes: int, steps: int
) -> tuple[Callable[[], None], dict]:
    """(function that trains `steps` steps on one batch of noise, seconds to compile and bytes of the program)."""
    model = create_model(name, num_classes=num_classes, dtype=jnp.dtype(dtype))
    images = jax.random.normal(jax.random.key(1), (batch, size, size, 3), jnp.dtype(dtype))
    data = {"image": images, "target": jax.nn.one_hot(jnp.arange(batch) % num_classes, num_classes)}
    state = random_state(model, size)

    start = time.perf_counter()
    step = jax.jit(make_train_step(model, OPTIMIZER), donate_argnums=0).lower(state, data).compile()
    compile_seconds = time.perf_counter() - start

    def train():
        nonlocal state
        for _ in range(steps):
            state, sums = step(state, data)
        jax.block_until_ready((state, sums))

    plan = step.memory_analysis()
    memory = plan.argument_size_in_bytes + plan.temp_size_in_bytes
    return train, {"compile_seconds": round(compile_seconds, 2), "program_memory_bytes": memory}


def inference(name: str, size: int, batch: int, dtype: str, *, num_classes: int, steps: int) -> Callable[[], None]:
    """A function that computes the logits of one batch of noise `steps` times, norms folded into the convolutions."""
    model = create_model(name, num_classes=num_classes, dtype=jnp.dtype(dtype))
    model, variables = fold_batchnorm(model, random_state(model, size).variables)
    # Weights as the net uses them, instead of a cast in every call; torch's net is converted as a whole, too.
    variables = jax.tree.map(lambda x: x.astype(dtype), variables)
    images = jax.random.normal(jax.random.key(1), (batch, size, size, 3), jnp.dtype(dtype))
    forward = jax.jit(lambda variables, images: model.apply(variables, images, train=False))

    def infer():
        for _ in range(steps):
            logits = forward(variables, images)
        jax.block_until_ready(logits)

    return infer


def small_image_model(name: str, dtype: str) -> nn.Module:
    """A net of 10 classes with a 3x3 convolution for its stem."""
    return create_model(name, num_classes=10, dtype=jnp.dtype(dtype), stem="small")


def small_image_program(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, batch: int, keys: jax.Array, steps_per_call: int = 1
) -> Program:
    """The program of a run whose data lie on one device, with pad-and-crop and mirroring, as a config's is made.

    Args:
      model: net of 10 classes.
      images: uint8 (n, h, w, c).
      labels: int32 (n,).
      batch: number of images of a step.
      keys: typed PRNG key of the order of the examples; or (k,), of k replicas.
      steps_per_call: steps that one `program.inputs` serves.
    """
    from resnet_jax.data.device import DeviceLoader  # here, as it needs OpenCV, which step_time does without
    from resnet_jax.data.sources import ArrayDataset

    parallel = DataParallel(jax.devices()[:1])
    loader = DeviceLoader(
        {"train": ArrayDataset(images, labels, tuple("0123456789"))},
        keys,
        batch_size=batch,
        eval_batch_size=batch,
        steps_per_call=steps_per_call,
        shards=parallel.shards,
        replicate=parallel.replicate,
    )
    scaled = functools.partial(normalize, mean=jnp.float32(0.5), std=jnp.float32(0.25))
    augment = functools.partial(augment_batch, settings=_AUGMENTATION, normalize=scaled, num_classes=10)
    batch_of = make_batch_fn(loader.gather, augment, parallel)
    train_step = make_train_step(model, OPTIMIZER, batch_of=batch_of, devices=parallel)

    def make_eval(split):
        return make_eval_step(
            model, gather=functools.partial(loader.eval_gather, split), normalize=scaled, devices=parallel
        )

    return Program(train_step, make_eval, batch_of, loader, parallel, vmapped=keys.ndim > 0)


def small_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels): noise of CIFAR-10's shape, uint8 (count, 32, 32, 3), and int32 (count,)."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, 10, count).astype(np.int32)
