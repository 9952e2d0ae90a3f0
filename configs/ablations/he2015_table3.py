"""He et al. 2015 (arXiv:1512.03385), Table 3: shortcuts of option A, B and C in the net of 34 layers on ImageNet.

    python -m resnet_jax.ablate --config=configs/ablations/he2015_table3.py --workdir=runs/ablation-he2015_table3

Hardware: several GPUs or a TPU pod. Cannot be run yet; see configs/ablations/he2015_table2.py, whose recipe this is.
"""

from configs.ablations.he2015_table2 import get_experiment
from resnet_jax.study import cell, make_study


def get_config():
    cells = [cell("plain34", {"model.name": "plain34", "model.shortcut": "none"})]
    cells += [cell(f"resnet34, {o}", {"model.name": "resnet34", "model.shortcut": o}) for o in ("A", "B", "C")]
    return make_study("He et al. 2015, Table 3: ImageNet", get_experiment(), cells)
