"""Your own photographs, in folders by class: ResNet-18 from scratch, for some hundreds or thousands of them.

    python train.py --config=configs/folder.py --config.data.data_dir=PATH

PATH has a training and a test split, with a folder of image files for each class:

    PATH/train/cat/1.jpg  PATH/train/dog/7.jpg  ...
    PATH/test/cat/2.jpg   PATH/test/dog/5.jpg   ...    (or val, or validation)

If it has both a validation and a test split, the first chooses the best weights. Otherwise a tenth of the training
images is held out for that; --config.data.validation_size=0 trains on all. PATH may also have nothing but a folder for
each class: then a fifth of the images is the test split (data.test_size).

Hardware: 2 CPU cores. Time: 9 minutes for 1000 images of 256x256 (56 images/s, measured over one epoch of synthetic
ones); large photographs take longer to decode. Result: none; it depends on the photographs.

On a GPU: --config.dtype=bfloat16 --config.data.image_size=160 --config.eval.image_size=192.
"""

import resnet_jax


def get_config():
    config = resnet_jax.get_config()
    config.model.name = "resnet18"
    config.model.zero_init_last_scale = True
    config.data.name = "folder"
    config.data.loader = "stream"
    config.data.validation_size = 0.1
    config.data.verify = "full"
    config.data.image_size = 96
    config.augment.view = "random_resized"
    config.augment.area = (0.25, 1.0)
    config.augment.jitter = (0.2, 0.2, 0.2, 0.0)
    config.augment.flip = True
    config.augment.pad_crop = 0
    config.train.batch_size = 32
    config.train.epochs = 30.0
    config.train.label_smoothing = 0.1
    config.optim.lr = 0.02
    config.optim.nesterov = True
    config.optim.weight_decay = 5e-4
    config.optim.weight_decay_params = "kernel$"
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 0.5
    config.log.every_steps = 10
    return config
