"""Procedure A3 of "ResNet strikes back" (Wightman et al. 2021, arXiv:2110.00476, Table 2): 100 epochs at 160 pixels.

    python -m resnet_jax.data.prepare imagenet2012 --manual DIR
    python train.py --config=configs/imagenet_a3.py

Hardware: 4 GPUs. Time: not measured by us yet. Result: top-1 on the validation images in percent, published by others,
not reproduced by us: 78.1 in the paper, 78.052 in timm's results-imagenet.csv (weights resnet50.a3_in1k; bicubic, short
side 236, centre crop 224).

configs/imagenet_a1.py lists the differences. Images are not repeated here, so the batch is the paper's, 2048. timm's
magnitude 6 of 10 is 18 of 30.
"""

import resnet_jax


def get_config():
    config = resnet_jax.get_config("imagenet_a2")
    config.model.stochastic_depth = 0.0
    config.data.image_size = 160
    config.augment.repeats = 1
    config.augment.magnitude = 18.0
    config.train.batch_size = 2048
    config.train.epochs = 100.0
    config.optim.lr = 8e-3
    config.eval.image_size = 224
    return config
