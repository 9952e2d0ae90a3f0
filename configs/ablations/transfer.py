"""Transfer between Fashion-MNIST and the digits: how many training examples do pretrained weights save?

    python -m resnet_jax.data.prepare fashion_mnist
    python train.py --config=configs/ablations/transfer.py:pretrain_fashion_mnist --workdir=runs/first_fashion_mnist
    python -m resnet_jax.ablate --config=configs/ablations/transfer.py --workdir=runs/transfer-digits

and the reverse:

    python train.py --config=configs/ablations/transfer.py:pretrain_digits --workdir=runs/first_digits
    python -m resnet_jax.ablate --config=configs/ablations/transfer.py:fashion_mnist --workdir=runs/transfer-fashion

ResNet-20 on images of 14x14 pixels. Each cell trains on the first so many examples of the training split, with random
weights, with those of the other data set and a new head, or with these frozen and the new head alone. What is not
trained on is the validation split, of which 1,000 examples are scored.

Hardware: 2 CPU cores. Time: 35 minutes for both, beside other work. Result: none saves examples that three seeds could
show; the tables are in docs/studies.md.
"""

from typing import Literal

import resnet_jax
from resnet_jax.studies import cell, make_study

_EXAMPLES = {"digits": (25, 50, 100, 200, 400), "fashion_mnist": (100, 200, 400, 800, 1600)}
_TRAINING_SPLIT = {"digits": 1437, "fashion_mnist": 60_000}
_OTHER = {"digits": "fashion_mnist", "fashion_mnist": "digits"}


def get_config(data: Literal["digits", "fashion_mnist", "pretrain_digits", "pretrain_fashion_mnist"] = "digits"):
    if data.startswith("pretrain_"):
        return _pretraining(data.removeprefix("pretrain_"))
    experiment = _experiment(data)
    experiment.train.epochs, experiment.train.steps = None, 200
    experiment.train.batch_size = 25
    experiment.optim.lr = 0.02
    experiment.eval.every_epochs = 1000.0  # at the end
    experiment.eval.max_examples = 1000
    pretrained = {"init_from": f"runs/first_{_OTHER[data]}", "head": "new", "data.normalization": "weights"}
    cells = []
    for count in _EXAMPLES[data]:
        held_out = {"data.validation_size": float(_TRAINING_SPLIT[data] - count)}
        cells += [
            cell(f"{count} examples, random weights", held_out),
            cell(f"{count} examples, pretrained", held_out | pretrained),
            cell(f"{count} examples, pretrained and frozen", held_out | pretrained | {"freeze": "^(?!fc/)"}),
        ]
    return make_study(f"Transfer from {_OTHER[data]} to {data}", experiment, cells)


def _experiment(data: str):
    experiment = resnet_jax.get_config()
    experiment.data.name = data
    experiment.data.image_size = 14
    experiment.augment.pad_crop = 1
    return experiment


def _pretraining(data: str):
    config = _experiment(data)
    config.train.epochs = {"digits": 30.0, "fashion_mnist": 2.0}[data]
    return config
