"""ResNet-18 on Imagenette, ten classes of ImageNet that are easy to tell apart: a rehearsal of ImageNet on one GPU.

    python -m resnet_jax.data.prepare imagenette
    python train.py --config=configs/imagenette.py

Hardware: 1 GPU. Time: not measured by us yet. Result: none yet; we have not run it on the real data.

9469 photographs to train on, of which 469 are held out, and 3925 to test on. Evaluated at 160 pixels, more than in
training, where random crops make things look larger (Touvron et al. 2019, arXiv:1906.06423).
"""

import resnet_jax


def get_config():
    config = resnet_jax.get_config()
    config.dtype = "bfloat16"
    config.model.name = "resnet18"
    config.model.zero_init_last_scale = True
    config.data.name = "imagenette"
    config.data.loader = "stream"
    config.data.validation_size = 469
    config.data.image_size = 128
    config.augment.view = "random_resized"
    config.augment.area = (0.25, 1.0)
    config.augment.jitter = (0.2, 0.2, 0.2, 0.0)
    config.augment.flip = True
    config.augment.pad_crop = 0
    config.train.batch_size = 128
    config.train.epochs = 40.0
    config.train.label_smoothing = 0.1
    config.optim.lr = 0.1
    config.optim.nesterov = True
    config.optim.weight_decay = 5e-4
    config.optim.weight_decay_params = "kernel$"
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 3.0
    config.eval.image_size = 160
    return config
