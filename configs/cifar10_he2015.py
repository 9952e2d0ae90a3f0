"""The CIFAR-10 recipe of He et al. 2015 (arXiv:1512.03385), section 4.2, to the letter.

    python -m resnet_jax.data.prepare cifar10
    python train.py --config=configs/cifar10_he2015.py:resnet56
    python train.py --config=configs/cifar10_he2015.py:resnet110

The name after the colon is the network: resnet20 (default), 32, 44, 56, 110, 1202, or a plain one. Only resnet110
has a warmup, 400 steps at 0.01, so name it there, not with --config.model.name.

Hardware: 1 GPU. Time: not measured yet. Result: test error in percent, published by the authors (Table 6), not
reproduced by us: resnet20 8.75, resnet32 7.51, resnet44 7.17, resnet56 6.97, resnet110 6.43, resnet1202 7.93.

The paper: 45k/5k split; per-pixel mean subtracted; 4 pixels of padding, random crop and flip; batches of 128; SGD with
momentum 0.9; weight decay 1e-4 on all weights; 64k steps, the rate of 0.1 divided by 10 at 32k and 48k; evaluation on
the single view of the test image.
"""

import resnet_jax


def get_config(name="resnet20"):
    config = resnet_jax.get_config()
    config.model.name = name
    config.data.name = "cifar10"
    config.data.validation_size = 5000
    config.data.normalization = "pixel_mean"
    config.augment.flip = True
    config.augment.pad_crop = 4
    config.train.batch_size = 128
    config.train.epochs = None
    config.train.steps = 64_000
    config.optim.lr = 0.1
    config.optim.momentum = 0.9
    config.optim.weight_decay = 1e-4
    config.optim.schedule = "step"
    config.optim.milestones = (0.5, 0.75)  # of 64k steps
    if name == "resnet110":
        config.optim.warmup_steps = 400
        config.optim.warmup_shape = "constant"
        config.optim.warmup_from = 0.01
    return config
