"""The recipe of torchvision's weights ResNet50_Weights.IMAGENET1K_V2: 600 epochs with every kind of augmentation.

    python -m resnet_jax.data.prepare imagenet2012 --manual DIR
    python train.py --config=configs/imagenet_torchvision_v2.py --workdir=WORKDIR
    python -m resnet_jax.evaluate WORKDIR --ema

Hardware: 8 GPUs. Time: not measured by us yet. Result: top-1 on the validation images in percent, published by others
(torchvision's documentation of the weights; short side 232, centre crop 224), not reproduced by us: resnet50 80.858.
The same recipe without repeats gave resnet101 81.886 and resnet152 82.284 (--config.model.name=resnet101).

The recipe is in the blog post "How to Train State-Of-The-Art Models Using TorchVision's Latest Primitives" and in
github.com/pytorch/vision/issues/3995. An epoch with 4 repeats has as many steps as one without, there and here.

The average of the weights: they update it every 32 steps with a decay of 1 - 2e-5 * 1024 * 32 / 600 = 0.998908, we at
every step with the 32nd root of that, 0.99996585.

Differences: they copy the weights into the average until the warmup is over; their rate changes once an epoch, ours
at every step; they choose mixup or cutmix, and its share, once for a batch, we for each image.
"""

import resnet_jax


def get_config():
    config = resnet_jax.get_config()
    config.model.name = "resnet50"
    config.data.name = "imagenet2012"
    config.data.loader = "stream"
    config.data.validation_size = 0
    config.data.image_size = 176
    config.augment.view = "random_resized"
    config.augment.repeats = 4
    config.augment.policy = "trivialaugment"
    config.augment.flip = True
    config.augment.pad_crop = 0
    config.augment.erasing = 0.1
    config.augment.mixup = 0.2
    config.augment.cutmix = 1.0
    config.train.batch_size = 1024
    config.train.epochs = 600.0
    config.train.label_smoothing = 0.1
    config.train.ema_decay = 0.99996585
    config.optim.lr = 0.5
    config.optim.momentum = 0.9
    config.optim.weight_decay = 2e-5
    config.optim.weight_decay_params = "kernel$|fc/bias$"  # all but the norms
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 5.0
    config.optim.warmup_from = 0.005
    config.eval.image_size = 224
    config.eval.crop_fraction = 224 / 232
    config.eval.test_curve = True
    return config
