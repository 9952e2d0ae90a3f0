"""He et al. 2015 (arXiv:1512.03385), Table 2: plain and residual nets of 18 and 34 layers on ImageNet.

    python -m resnet_jax.ablate --config=configs/ablations/he2015_table2.py --workdir=runs/ablation-he2015_table2

Hardware: several GPUs or a TPU pod. Time: not measured by us yet. The data: python -m resnet_jax.data.prepare
imagenet2012 --manual DIR. On synthetic images it can be tried anywhere (5 minutes on 2 CPU cores):

    python -m resnet_jax.ablate --config=configs/ablations/he2015_table2.py --workdir=runs/table2-on-synthetic-images \
        --config.experiment.data.name=synthetic:256:10 --config.experiment.data.image_size=64 \
        --config.experiment.train.batch_size=32 --config.experiment.train.steps=20 --config.seeds="(0,)"

The paper (section 3.4): batches of 256, rate 0.1 divided by 10 when the error plateaus (here at a quarter, half and
three quarters), up to 600k steps, weight decay 1e-4, momentum 0.9; shortcuts of option A. The recipe is that of
configs/imagenet_he2015.py, which lists the other differences. The paper reports 10-crop errors; for those of a run:
python -m resnet_jax.evaluate RUN --view ten_crop
"""

import resnet_jax
from resnet_jax.studies import cell, make_study


def get_config():
    cells = [
        cell(f"{name}{depth}", {"model.name": f"{name}{depth}", "model.shortcut": shortcut}, series)
        for name, shortcut, series in (("plain", "none", "plain"), ("resnet", "A", "residual"))
        for depth in (18, 34)
    ]
    return make_study("He et al. 2015, Table 2: ImageNet", resnet_jax.get_config("imagenet_he2015:resnet18"), cells)
