"""Classification by the nearest neighbours among the features of the training images, by cosine similarity.

Before: python train.py --workdir=runs/digits
"""

import functools
import sys

import jax
import jax.numpy as jnp

import resnet_jax

run = sys.argv[1] if len(sys.argv) > 1 else "runs/digits"
neighbours = 5
model, variables = resnet_jax.load_checkpoint(run)
apply = jax.jit(functools.partial(model.apply, train=False, features=True))
features, labels = {}, {}
for split in ("train", "test"):
    images, labels[split] = resnet_jax.load_data(run, split)
    vectors = apply(variables, images)[1]["pre_logits"]
    features[split] = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)

similarity, nearest = jax.lax.top_k(features["test"] @ features["train"].T, neighbours)  # (n, neighbours)
votes = jax.nn.one_hot(labels["train"][nearest], model.num_classes).sum(axis=1)
accuracy = (votes.argmax(axis=1) == labels["test"]).mean()
print(f"{neighbours} nearest neighbours: {accuracy:.2%} of the test images")
