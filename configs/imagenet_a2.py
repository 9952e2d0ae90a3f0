"""Procedure A2 of "ResNet strikes back" (Wightman et al. 2021, arXiv:2110.00476, Table 2): 300 epochs.

    python -m resnet_jax.data.prepare imagenet2012 --manual DIR
    python train.py --config=configs/imagenet_a2.py

Hardware: 8 GPUs. Time: not measured by us yet. Result: top-1 on the validation images in percent, published by others,
not reproduced by us: 79.8 in the paper, 79.828 in timm's results-imagenet.csv (weights resnet50.a2_in1k; bicubic, short
side 236, centre crop 224).

configs/imagenet_a1.py lists the differences. The threshold of 0.2 is that of a command line published for A2
(github.com/Alibaba-MIIL/ML_Decoder); the paper names none.
"""

import resnet_jax


def get_config():
    config = resnet_jax.get_config("imagenet_a1")
    config.augment.mixup = 0.1
    config.train.epochs = 300.0
    config.train.bce_threshold = 0.2
    config.train.label_smoothing = 0.0
    config.optim.weight_decay = 0.02
    return config
