"""He et al. 2015 (arXiv:1512.03385), Table 2: plain and residual nets of 18 and 34 layers on ImageNet.

    python -m resnet_jax.ablate --config=configs/ablations/he2015_table2.py --workdir=runs/ablation-he2015_table2

Hardware: several GPUs or a TPU pod. Cannot be run yet: ImageNet needs a loader that does not hold the data set in
memory. Until then it can be tried on other data:

    python -m resnet_jax.ablate --config=configs/ablations/he2015_table2.py --workdir=runs/table2-on-digits \
        --config.experiment.data.name=digits --config.experiment.data.image_size=64 \
        --config.experiment.train.steps=20 --config.seeds="(0,)"

The paper (section 3.4): batches of 256, rate 0.1 divided by 10 when the error plateaus (here at a quarter, half and
three quarters), up to 600k steps, weight decay 1e-4, momentum 0.9; shortcuts of option A. It reports 10-crop errors.
"""

from configs import default
from resnet_jax.study import cell, make_study


def get_experiment():
    experiment = default.get_config()
    experiment.model.name = "resnet18"
    experiment.model.shortcut = "A"
    experiment.data.name = "imagenet2012"
    experiment.data.image_size = 224
    experiment.data.validation_size = 0
    experiment.augment.flip = True
    experiment.augment.crop = 0
    experiment.train.batch_size = 256
    experiment.train.epochs = None
    experiment.train.steps = 600_000
    experiment.optim.schedule = "step"
    experiment.optim.milestones = (0.25, 0.5, 0.75)
    experiment.eval.test_curve = True
    return experiment


def get_config():
    cells = [
        cell(f"{name}{depth}", {"model.name": f"{name}{depth}", "model.shortcut": shortcut}, series)
        for name, shortcut, series in (("plain", "none", "plain"), ("resnet", "A", "residual"))
        for depth in (18, 34)
    ]
    return make_study("He et al. 2015, Table 2: ImageNet", get_experiment(), cells)
