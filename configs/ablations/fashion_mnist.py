"""Plain and residual nets of 20 to 56 layers on Fashion-MNIST.

    python -m resnet_jax.data.prepare fashion_mnist
    python -m resnet_jax.ablate --config=configs/ablations/fashion_mnist.py --workdir=runs/ablation-fashion_mnist

Hardware: 1 GPU (on 2 CPU cores about a day and a half; add --config.experiment.train.epochs=1 to try it).

The recipe of He et al. 2015, section 4.2, shortened to 12 epochs: nothing but the shortcuts helps the deep nets.
"""

import resnet_jax
from resnet_jax.studies import make_study, plain_and_residual


def get_config():
    experiment = resnet_jax.get_config()
    experiment.data.name = "fashion_mnist"
    experiment.data.validation_size = 5000
    experiment.augment.flip = True
    experiment.augment.pad_crop = 4
    experiment.train.epochs = 12.0
    experiment.optim.schedule = "step"
    experiment.eval.test_curve = True
    experiment.diagnostics.layers = True
    return make_study("Residual against plain nets on Fashion-MNIST", experiment, plain_and_residual((20, 32, 44, 56)))
