"""ResNet-50 on ImageNet, 90 epochs, by the recipe of Flax's own example (google/flax, examples/imagenet).

    python -m resnet_jax.data.prepare imagenet2012 --manual DIR
    python train.py --config=configs/imagenet_resnet50.py
    python train.py --config=configs/imagenet_resnet50.py --config.train.batch_size=512 --config.dtype=float32

Hardware: 8 GPUs or a TPU of 8 chips. Time: not measured by us yet; theirs 4.4 h on a TPU v3-8, 13.2 h on 8 V100.
Result: top-1 on the validation images in percent, published by others (the README of the example; centre crop of 224
out of 256, last epoch), not reproduced by us:

    TPU v3-32, batch 1024, bfloat16             76.54   (the target: 76.5)
    TPU v3-8, batch 1024, bfloat16              76.37
    8 V100, batch 512, float32 (third command)  76.72
    8 V100, batch 2048, float16                 76.27

These runs were of 100 epochs (125100 steps at batch 1024): --config.train.epochs=100. Their code draws 8 to 100 percent
of the area.

Differences: their training crops are resized bicubically, ours bilinearly; they drop what does not fill a batch, in
an epoch and in evaluation; they draw from a buffer of 16 batches, we from the whole epoch.
"""

import resnet_jax


def get_config():
    config = resnet_jax.get_config()
    config.dtype = "bfloat16"
    config.model.name = "resnet50"
    config.model.zero_init_last_scale = True
    config.data.name = "imagenet2012"
    config.data.loader = "stream"
    config.data.validation_size = 0
    config.data.image_size = 224
    config.augment.view = "random_resized"
    config.augment.area = (0.08, 1.0)
    config.augment.flip = True
    config.augment.pad_crop = 0
    config.train.batch_size = 1024
    config.train.epochs = 90.0
    config.optim.lr = 0.1
    config.optim.lr_scaling = "linear"
    config.optim.momentum = 0.9
    config.optim.nesterov = True
    config.optim.weight_decay = 1e-4
    config.optim.weight_decay_params = "kernel$"
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 5.0
    config.eval.interpolation = "bicubic"
    config.eval.test_curve = True
    return config
