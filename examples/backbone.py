"""A trained net inside another Flax module, which adds two digits: frozen, or trained on with `RUN trained`.

Before: python train.py --workdir=runs/digits
"""

import sys

import flax.linen as nn
import jax
import numpy as np
import optax

import resnet_jax

run = sys.argv[1] if len(sys.argv) > 1 else "runs/digits"
frozen = "trained" not in sys.argv[2:]


class Sum(nn.Module):
    backbone: nn.Module

    @nn.compact
    def __call__(self, pairs, train):  # (n, 2, h, w, c)
        images = pairs.reshape(-1, *pairs.shape[2:])
        _, activations = self.backbone(images, train=train and not frozen, features=True)  # statistics stay, too
        features = activations["pre_logits"].reshape(len(pairs), -1)
        features = jax.lax.stop_gradient(features) if frozen else features
        return nn.Dense(19, name="head")(nn.relu(nn.Dense(128, name="hidden")(features)))


@jax.jit
def step(variables, state, pairs, sums):
    def loss(params):
        logits, updates = net.apply({**variables, "params": params}, pairs, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, sums).mean(), updates

    gradient, statistics = jax.grad(loss, has_aux=True)(variables["params"])
    updates, state = optimizer.update(gradient, state)
    return {"params": optax.apply_updates(variables["params"], updates), **statistics}, state


def new_layers(key, pairs):
    params = net.init(key, pairs, train=False)["params"]
    return {name: params[name] for name in ("hidden", "head")}  # XLA leaves out what is not returned


backbone, loaded = resnet_jax.load_checkpoint(run)
images, labels = resnet_jax.load_data(run, "train")
net = Sum(backbone)
apply = jax.jit(net.apply, static_argnames="train")
variables = {kind: {"backbone": loaded[kind]} for kind in loaded}
variables["params"] |= jax.jit(new_layers)(jax.random.key(0), images[None, :2])
rates = {"new": optax.adam(3e-3), "loaded": optax.set_to_zero() if frozen else optax.adam(3e-4)}
optimizer = optax.multi_transform(rates, {"backbone": "loaded", "hidden": "new", "head": "new"})
state = optimizer.init(variables["params"])
for chosen in np.random.default_rng(0).integers(len(labels), size=(200, 32, 2)):
    variables, state = step(variables, state, images[chosen], labels[chosen].sum(axis=1))

images, labels = resnet_jax.load_data(run, "test")
sums = apply(variables, images.reshape(-1, 2, *images.shape[1:]), train=False).argmax(axis=1)
accuracy = (sums == labels.reshape(-1, 2).sum(axis=1)).mean()
print(f"{'frozen' if frozen else 'trained'} backbone: {accuracy:.2%} of the sums of two test images")
