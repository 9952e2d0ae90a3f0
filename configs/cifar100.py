"""A modern recipe for CIFAR-100: that of configs/cifar10.py, longer, with cutmix instead of cutout.

    python -m resnet_jax.data.prepare cifar100
    python train.py --config=configs/cifar100.py

Hardware: 1 GPU. Time: not measured yet. Result: none yet; we have not run it on the real data.
"""

import resnet_jax


def get_config():
    config = resnet_jax.get_config("cifar10")
    config.data.name = "cifar100"
    config.augment.cutout = 0
    config.augment.cutmix = 1.0
    config.train.epochs = 100.0
    return config
