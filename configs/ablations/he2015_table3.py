"""He et al. 2015 (arXiv:1512.03385), Table 3: shortcuts of option A, B and C in the net of 34 layers on ImageNet.

    python -m resnet_jax.ablate --config=configs/ablations/he2015_table3.py --workdir=runs/ablation-he2015_table3

Hardware: several GPUs or a TPU pod. Cannot be run yet; see configs/ablations/he2015_table2.py, whose recipe this is.
"""

from configs.ablations.he2015_table2 import get_experiment
from resnet_jax.study import cell, make_study


def get_config():
    names = {"none": "plain34", "A": "resnet34, A", "B": "resnet34, B", "C": "resnet34, C"}
    cells = [cell(name, {"model.name": "resnet34", "model.shortcut": shortcut}) for shortcut, name in names.items()]
    return make_study("He et al. 2015, Table 3: ImageNet", get_experiment(), cells)
