"""The average of a run's checkpoints, as one model (stochastic weight averaging, Izmailov et al. 2018).

Before: python train.py --workdir=runs/digits
"""

import functools
import pathlib
import sys

import jax

import resnet_jax
from resnet_jax.checkpoint import SavedSteps
from resnet_jax.weights.native import write_weights

run = sys.argv[1] if len(sys.argv) > 1 else "runs/digits"
steps = SavedSteps(run).steps()
models, weights = zip(*(resnet_jax.load_checkpoint(run, step) for step in steps), strict=True)
averaged = jax.tree.map(lambda *arrays: sum(arrays) / len(arrays), *weights)
# Averaged weights have batch statistics of their own: measure them on the training images.
train = jax.jit(functools.partial(models[0].apply, train=True, mutable=["batch_stats"]))
images, _ = resnet_jax.load_data(run, "train")
for start in 5 * list(range(0, len(images) - 127, 128)):
    averaged |= train(averaged, images[start : start + 128])[1]

apply = jax.jit(functools.partial(models[0].apply, train=False))
images, labels = resnet_jax.load_data(run, "test")
for name, variables in {**dict(zip(steps, weights, strict=True)), "averaged": averaged}.items():
    print(f"step {name}: {(apply(variables, images).argmax(axis=1) == labels).mean():.2%} of the test images")
write_weights(pathlib.Path(run, "averaged.safetensors"), resnet_jax.load_card(run), averaged)
