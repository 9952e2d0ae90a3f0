"""Plain and residual nets of 20 to 56 layers on scikit-learn's digits: the degradation problem in minutes.

    python -m resnet_jax.ablate
    python -m resnet_jax.ablate --config=configs/ablations/digits.py --workdir=runs/ablation-digits

Hardware: 2 CPU cores. Time: 8 minutes. No download. Result: training error, mean and standard deviation over seeds 0
to 2: plain20 0.0%, plain32 2.0 +- 0.6%, plain44 28 +- 10%, plain56 74 +- 11%, and 0.0% for all four residual nets.

The recipe follows He et al. 2015, section 4.2: SGD with momentum 0.9, weight decay 1e-4, and blocks that do not begin
as the identity, so that nothing but the shortcuts helps the deep nets. It lasts only 15 epochs. In so few, with
the paper's rate of 0.1 and no warmup, some residual nets of 32 or more layers lag behind, too. So all nets get 3
epochs of warmup (the paper warms up its net of 110 layers) and half the rate: with these, resnet56 learned its training
set with each of the seeds 0 to 4. They were chosen for the residual nets; nothing was chosen for the plain ones.
"""

import resnet_jax
from resnet_jax.studies import make_study, plain_and_residual


def get_config():
    experiment = resnet_jax.get_config()
    experiment.augment.pad_crop = 0
    experiment.train.epochs = 15.0
    experiment.optim.lr = 0.05
    experiment.optim.warmup_epochs = 3.0
    experiment.eval.test_curve = True
    experiment.diagnostics.layers = True
    experiment.diagnostics.lesions = True
    experiment.diagnostics.precise_statistics = True
    experiment.log.every_steps = 1000  # at evaluations only: a line between two would cover a batch or so
    return make_study("Residual against plain nets on digits", experiment, plain_and_residual((20, 32, 44, 56)))
