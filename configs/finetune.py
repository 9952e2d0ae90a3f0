"""A pretrained ResNet-50 on a folder of images: first a new head on frozen layers, then all layers at a small rate.

    python train.py --config=configs/finetune.py --config.data.data_dir=photos --workdir=runs/head
    python train.py --config=configs/finetune.py:all --config.data.data_dir=photos --workdir=runs/all

The first takes torchvision's weights from the file resnet50-11ad3fa6.pth (`init_from`). Those of timm, Keras or a run
of ours do as well, with their net as config.model.name. It trains the head alone: the other weights and all batch
statistics stay to the bit, have no state in the optimizer, and no gradient is computed for them. The second begins with
the best weights of the first (`runs/head`) and trains everything, the head ten times faster than the rest.

Images may have any size and classes any number. Grey images see the sum of the first layer's three input channels;
weights that know blue, green, red get them in that order.

Hardware: 2 CPU cores or more. Time: not measured on photographs of any number. Result: none; it depends on the data.
"""

from typing import Literal

import resnet_jax


def get_config(phase: Literal["head", "all"] = "head"):
    config = resnet_jax.get_config("folder")
    config.model.name = "resnet50"
    config.init_from = "resnet50-11ad3fa6.pth" if phase == "head" else "runs/head"
    config.data.normalization = "weights"
    config.train.epochs = 10.0
    config.optim.weight_decay = 1e-4
    if phase == "head":
        config.head = "new"
        config.freeze = "^(?!fc/)"
        config.optim.lr = 0.05
    else:
        config.optim.lr = 0.002
        config.optim.lr_factors = (("^fc/", 10.0),)
        config.optim.warmup_epochs = 1.0
    return config
