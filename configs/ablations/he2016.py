"""He et al. 2016 (arXiv:1603.05027), Table 3: original against pre-activation units at 110, 164 and 1001 layers.

    python -m resnet_jax.data.prepare cifar10
    python -m resnet_jax.ablate --config=configs/ablations/he2016.py --workdir=runs/ablation-he2016

Hardware: GPUs; the nets of 1001 layers take days. We have not run it on the real images yet.

Each run is that of configs/cifar10_he2015.py with the warmup that this paper gives to all its nets (400 steps at a
rate of 0.01). The paper reports the median of 5 runs.
"""

import resnet_jax
from resnet_jax.studies import cell, make_study


def get_config():
    experiment = resnet_jax.get_config("cifar10_he2015:resnet110")  # with its warmup
    experiment.eval.test_curve = True
    units = (("resnet", "original"), ("preact_resnet", "pre-activation"))
    cells = [
        cell(f"{name}{depth}", {"model.name": f"{name}{depth}"}, series)
        for name, series in units
        for depth in (110, 164, 1001)
    ]
    return make_study("He et al. 2016, Table 3: CIFAR-10", experiment, cells, seeds=(0, 1, 2, 3, 4))
