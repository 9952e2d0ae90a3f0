"""Batch statistics over one device, a group of devices or all; group norm; no norm.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 \
        python -m resnet_jax.ablate --config=configs/ablations/batchnorm.py --workdir=runs/ablation-batchnorm

Hardware: four devices, such as the four virtual ones of that command on 2 CPU cores.

ResNet-20 on scikit-learn's digits, batches of 32 on four devices: 8 examples on each. The net without norms gets a
fifth of the others' learning rate.
"""

import resnet_jax
from resnet_jax.studies import cell, make_study


def get_config():
    experiment = resnet_jax.get_config("ablations/digits").experiment
    experiment.model.name = "resnet20"
    experiment.train.batch_size = 32
    experiment.parallel.devices = 4
    cells = [
        cell("batch norm over 8 (one device)", {"norm.scope": "local"}),
        cell("batch norm over 16 (two devices)", {"norm.scope": "group", "norm.group_size": 2}),
        cell("batch norm over 32 (all devices)", {"norm.scope": "global"}),
        cell("group norm (4 groups)", {"norm.name": "group", "norm.groups": 4}),
        cell("no norm (lr 0.01)", {"norm.name": "none", "optim.lr": 0.01}),
    ]
    return make_study("Norms on digits", experiment, cells)
