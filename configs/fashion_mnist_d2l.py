"""ResNet-18 on Fashion-MNIST as in Dive into Deep Learning, section 7.6 (residual networks).

    python -m resnet_jax.data.prepare fashion_mnist
    python train.py --config=configs/fashion_mnist_d2l.py

Hardware: 1 GPU. Time: not measured yet. Result: 0.893 to 0.922 test accuracy at the last epoch, published by the book's
framework editions, not reproduced by us.

The protocol is the book's: images resized to 96x96, batches of 256, SGD without momentum at 0.05, 10 epochs, no
augmentation, no weight decay, all 60,000 images for training, the last epoch scored. `curves.png` has the book's three
curves: training loss, training accuracy and test accuracy. Differences: images are normalised by mean and standard
deviation (the book leaves them in 0..1), and weights start as in He et al. 2015 (the book: Xavier). The shapes that the
book prints after each stage: python -m resnet_jax.summary resnet18 --channels=1 --classes=10 (or --size=96).
"""

import resnet_jax


def get_config():
    config = resnet_jax.get_config()
    config.model.name = "resnet18"
    config.data.name = "fashion_mnist"
    config.data.image_size = 96
    config.data.validation_size = 0
    config.augment.pad_crop = 0
    config.train.batch_size = 256
    config.train.epochs = 10.0
    config.optim.lr = 0.05
    config.optim.momentum = 0.0
    config.optim.weight_decay = 0.0
    config.optim.schedule = "constant"
    config.eval.test_curve = True
    return config
