"""Shortcuts of a block: none, options A, B and C, highway gates, or a learned scale.

    python -m resnet_jax.ablate --config=configs/ablations/shortcuts.py --workdir=runs/ablation-shortcuts
    python -m resnet_jax.ablate --config=configs/ablations/shortcuts.py:cifar10 --workdir=runs/ablation-shortcuts-cifar

Hardware: 2 CPU cores for the digits (44 layers, 15 epochs), GPUs for CIFAR-10 (110 layers, the paper's recipe; we have
not run it yet). He et al. 2016 (arXiv:1603.05027), Table 1, compares some of these at 110 layers.
"""

import resnet_jax
from resnet_jax.studies import cell, make_study


def get_config(data="digits"):
    if data == "digits":
        experiment = resnet_jax.get_config("ablations/digits").experiment
        experiment.model.name = "resnet44"
    else:
        experiment = resnet_jax.get_config("cifar10_he2015:resnet110")
        experiment.data.name = data
        experiment.eval.test_curve = True
    names = {
        "none": "none (plain)",
        "A": "A: zeros",
        "B": "B: projections",
        "C": "C: projections only",
        "highway": "highway",
        "skipinit": "SkipInit",
    }
    cells = [cell(name, {"model.shortcut": shortcut}) for shortcut, name in names.items()]
    return make_study(f"Shortcuts on {data}", experiment, cells)
