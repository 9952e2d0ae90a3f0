"""ResNet-50 on ImageNet with batches of 32768 images: LARS (You et al. 2017, arXiv:1708.03888) on a TPU pod.

    python -m resnet_jax.data.prepare imagenet2012 --manual DIR
    python train.py --config=configs/imagenet_large_batch.py --workdir=WORKDIR

The second command runs on every host, with a WORKDIR that all of them see. On one host add
--config.parallel.distributed=False; with too little memory, --config.train.grad_accum_steps=8.

Hardware: a TPU pod of 512 or 1024 cores, or as many GPUs. Time: not measured by us yet; theirs 2.2 min on a TPU v3 of
1024 chips. Result: top-1 on the validation images in percent, published by others (Ying et al. 2018, arXiv:1811.06992,
abstract; centre crop of 224 out of 256), not reproduced by us: 76.3.

The numbers here are those that Google published for this batch (github.com/tensorflow/tpu, models/official/resnet:
lars_util.py and configs/cloud/v3-512.yaml, which calls them not optimised). The paper's run may have used others.

Differences: the rate is inside the momentum, as in You et al. 2017, and outside in TensorFlow's LARS; the paper's
batch statistics are those of a group of cores (norm.scope, norm.group_size); training crops are resized bilinearly, not
bicubically.
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
    config.augment.flip = True
    config.augment.pad_crop = 0
    config.train.batch_size = 32_768
    config.train.epochs = None
    config.train.steps = 3558  # 91 epochs
    config.train.label_smoothing = 0.1
    config.optim.name = "lars"
    config.optim.lr = 32.0
    config.optim.momentum = 0.9
    config.optim.weight_decay = 1e-4
    config.optim.weight_decay_mode = "decoupled"
    config.optim.weight_decay_params = "kernel$"
    config.optim.schedule = "polynomial"
    config.optim.warmup_epochs = 14.0
    config.optim.power = 2.0
    config.parallel.distributed = True
    config.eval.batch_size = 8192
    config.eval.interpolation = "bicubic"
    config.eval.every_epochs = 4.0
    config.eval.test_curve = True
    config.log.every_steps = 10
    return config
