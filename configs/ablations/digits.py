"""Plain and residual nets of 20 to 56 layers on scikit-learn's digits: the degradation problem in minutes.

    python -m resnet_jax.ablate
    python -m resnet_jax.ablate --config=configs/ablations/digits.py --workdir=runs/ablation-digits

Hardware: 2 CPU cores. Time: 12 minutes. No download. Result: training error, mean and standard deviation over seeds 0
to 2: plain20 0.0%, plain32 1.5 +- 1.2%, plain44 36 +- 13%, plain56 61 +- 9%, and 0.0% for all four residual nets.

The recipe follows He et al. 2015, section 4.2: SGD with momentum 0.9, weight decay 1e-4, and blocks that do not begin
as the identity, so that nothing but the shortcuts helps the deep nets. But it lasts 15 epochs only, and in so few the
paper's rate of 0.1 without a warm-up leaves some residual nets of 32 layers and more behind, too. So all nets get 3
epochs of warm-up (the paper warms up its net of 110 layers) and half the rate: with that resnet56 learned its training
set with each of the seeds 0 to 4. It was chosen for the residual nets; nothing was chosen for the plain ones.
"""

from configs import default
from resnet_jax.study import cell, make_study


def get_config():
    experiment = default.get_config()
    experiment.augment.crop = 0
    experiment.train.epochs = 15.0
    experiment.optim.lr = 0.05
    experiment.optim.warmup_epochs = 3.0
    experiment.eval.test_curve = True
    experiment.measure.layers = True
    experiment.measure.lesions = True
    experiment.measure.precise_statistics = True
    experiment.log.every_steps = 1000  # at evaluations only: another line between two would be of a batch or so
    return make_study("Residual against plain nets on digits", experiment, plain_and_residual((20, 32, 44, 56)))


def plain_and_residual(depths):
    """A cell for each depth, plain and residual."""
    kinds = (("plain", "plain"), ("resnet", "residual"))
    return [cell(f"{name}{n}", {"model.name": f"{name}{n}"}, series) for name, series in kinds for n in depths]
