"""He et al. 2015 (arXiv:1512.03385), Table 3: shortcuts of option A, B and C in the net of 34 layers on ImageNet.

    python -m resnet_jax.ablate --config=configs/ablations/he2015_table3.py --workdir=runs/ablation-he2015_table3

Hardware: several GPUs or a TPU pod. Time: not measured by us yet. The recipe, and how to try it on synthetic images:
configs/ablations/he2015_table2.py.
"""

import resnet_jax
from resnet_jax.studies import cell, make_study


def get_config():
    cells = [cell("plain34", {"model.name": "plain34", "model.shortcut": "none"})]
    cells += [cell(f"resnet34, {o}", {"model.name": "resnet34", "model.shortcut": o}) for o in ("A", "B", "C")]
    return make_study("He et al. 2015, Table 3: ImageNet", resnet_jax.get_config("imagenet_he2015:resnet34"), cells)
