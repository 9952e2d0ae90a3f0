"""Features of each stage of a trained net, and what a linear classifier reads off them (Alain and Bengio 2016).

Before: python train.py --workdir=runs/digits
"""

import functools
import sys

import jax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import resnet_jax

run = sys.argv[1] if len(sys.argv) > 1 else "runs/digits"
model, variables = resnet_jax.load_checkpoint(run)
apply = jax.jit(functools.partial(model.apply, train=False, features=True))
images, labels, activations = {}, {}, {}
for split in ("train", "test"):
    images[split], labels[split] = resnet_jax.load_data(run, split)
    logits, activations[split] = apply(variables, images[split])  # all at once; in batches where it needs too much

for layer in ("stem", *(name for name in activations["train"] if name.startswith("stage"))):
    features = {split: activations[split][layer].mean(axis=(1, 2)) for split in activations}  # (n, channels)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features["train"], labels["train"])
    print(f"linear probe, {layer}: {probe.score(features['test'], labels['test']):.2%} of the test images")
