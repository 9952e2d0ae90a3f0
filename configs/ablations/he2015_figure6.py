"""He et al. 2015 (arXiv:1512.03385), Figure 6: plain and residual nets of 20 to 110 layers, and 1202, on CIFAR-10.

    python -m resnet_jax.data.prepare cifar10
    python -m resnet_jax.ablate --config=configs/ablations/he2015_figure6.py --workdir=runs/ablation-he2015_figure6

Hardware: GPUs; --cell=0 to --cell=10 run one cell each, as in a job array. We have not run it on the real images yet.

Each run is that of configs/cifar10_he2015.py. The paper warms up the 110-layer net for 400 steps at a rate of 0.01;
here the plain net of that depth and the 1202-layer net are warmed up alike.
"""

import resnet_jax
from resnet_jax.studies import cell, make_study, plain_and_residual

WARMUP = {"optim.warmup_steps": 400, "optim.warmup_shape": "constant", "optim.warmup_from": 0.01}


def get_config():
    experiment = resnet_jax.get_config("cifar10_he2015")
    experiment.eval.test_curve = True
    experiment.diagnostics.layers = True
    cells = plain_and_residual((20, 32, 44, 56, 110))
    cells.append(cell("resnet1202", {"model.name": "resnet1202"}, "residual"))
    for each in cells:
        if each["name"] in ("plain110", "resnet110", "resnet1202"):
            each["overrides"] |= WARMUP
    return make_study("He et al. 2015, Figure 6: CIFAR-10", experiment, cells)
