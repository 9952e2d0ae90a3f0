"""The ImageNet recipe of He et al. 2015 (arXiv:1512.03385), section 3.4.

    python -m resnet_jax.data.prepare imagenet2012 --manual DIR
    python train.py --config=configs/imagenet_he2015.py
    python train.py --config=configs/imagenet_he2015.py:resnet34 --workdir=WORKDIR
    python -m resnet_jax.evaluate WORKDIR --view ten_crop

The name after the colon is the network: resnet50_v1 (default), resnet101_v1, resnet152_v1, resnet18, resnet34, plain18
or plain34. The paper's bottlenecks stride in their first convolution, as those with _v1 do, and have shortcuts of
option B. resnet18 and resnet34 get option A, that of Table 2; Table 3 has 34 layers with the others, too:
--config.model.shortcut=B or C.

Hardware: 8 GPUs. Time: not measured by us yet. Result: top-1 error on the validation images in percent, published by
the authors, not reproduced by us:

    10-crop, Table 2         plain18 27.94, resnet18 27.88, plain34 28.54, resnet34 25.03
    10-crop, Table 3         resnet34 of option B 24.52, C 24.19; resnet50 22.85, resnet101 21.75, resnet152 21.43
    1-crop, released models  resnet50 24.7, resnet101 23.6, resnet152 23.0 (224 out of a short side of 256)

The last command gives the 10-crop error; training itself reports the 1-crop one. (Table 4 is --view multi_scale.)

The paper: short side resized to 256 to 480, random crop of 224, flip, colour noise of AlexNet; batches of 256; SGD with
momentum 0.9; weight decay 1e-4; rate 0.1, divided by 10 when the error plateaus; up to 600k steps; no dropout.

Differences: the rate drops at fixed times, after 150k, 300k and 450k steps; the mean is subtracted per channel, not
per pixel, and the result divided by the standard deviation.
"""

import resnet_jax


def get_config(name="resnet50_v1"):
    config = resnet_jax.get_config()
    config.model.name = name
    if name in ("resnet18", "resnet34"):
        config.model.shortcut = "A"
    config.data.name = "imagenet2012"
    config.data.loader = "stream"
    config.data.validation_size = 0
    config.data.image_size = 224
    config.augment.view = "scale_jitter"
    config.augment.short_sides = (256, 480)
    config.augment.lighting = 0.1
    config.augment.flip = True
    config.augment.pad_crop = 0
    config.train.batch_size = 256
    config.train.epochs = None
    config.train.steps = 600_000
    config.optim.lr = 0.1
    config.optim.momentum = 0.9
    config.optim.weight_decay = 1e-4
    config.optim.schedule = "step"
    config.optim.milestones = (0.25, 0.5, 0.75)  # of 600k steps
    config.eval.test_curve = True
    return config
