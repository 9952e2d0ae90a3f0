"""A modern recipe for CIFAR-10: ResNet-18 with the stem for small images, 30 epochs.

    python -m resnet_jax.data.prepare cifar10
    python train.py --config=configs/cifar10.py

Hardware: 1 GPU. Time: not measured yet. Result: none yet; we have not run it on the real data.

Its modern parts: a triangular schedule, Nesterov momentum, weight decay on kernels only, label smoothing, cutout,
a moving average of the weights, bfloat16 and several steps per call of the compiled program.
"""

import resnet_jax


def get_config():
    config = resnet_jax.get_config()
    config.dtype = "bfloat16"
    config.model.name = "resnet18"
    config.model.stem = "small"
    config.model.zero_init_last_scale = True
    config.data.name = "cifar10"
    config.data.validation_size = 5000
    config.augment.flip = True
    config.augment.pad_crop = 4
    config.augment.cutout = 8
    config.train.batch_size = 512
    config.train.epochs = 30.0
    config.train.label_smoothing = 0.1
    config.train.ema_decay = 0.995
    config.train.steps_per_call = 10
    config.optim.lr = 0.4
    config.optim.nesterov = True
    config.optim.weight_decay = 5e-4
    config.optim.weight_decay_params = "kernel$"
    config.optim.schedule = "triangular"
    return config
