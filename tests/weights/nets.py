"""Nets of other libraries with random weights and random batch statistics."""

import numpy as np

from resnet_jax.weights.references import import_torchvision


def torch_net(name, num_classes, channels=3):
    import torch

    torch.manual_seed(0)
    torchvision = import_torchvision()
    if name in torchvision.models.list_models():
        net = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    else:
        import timm

        net = timm.create_model(name, num_classes=num_classes, in_chans=channels)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.GroupNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and module.bias is not None:
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
    for module in net.modules():  # as after training, each branch adds little to what passes it by
        if hasattr(module, "se") and module.se is not None:
            # Without this, torch's own logits of seresnet101 in float32 and in float64 differ by a third.
            getattr(module, "bn3", module.bn2).weight.data *= 0.2
    return net.eval()


def keras_net(name, num_classes, shape):
    import keras

    rng = np.random.default_rng(0)
    net = getattr(keras.applications, name)(
        weights=None, classes=num_classes, input_shape=shape, classifier_activation=None
    )
    for layer in net.layers:
        shapes = [weight.shape for weight in layer.get_weights()]
        if isinstance(layer, keras.layers.BatchNormalization):
            ranges = ((0.5, 1.5), (-0.5, 0.5), (-0.5, 0.5), (0.5, 1.5))  # gamma, beta, mean, variance
            layer.set_weights([rng.uniform(*limits, shape) for limits, shape in zip(ranges, shapes, strict=True)])
        elif shapes:
            kernel = rng.normal(0, np.sqrt(2 / np.prod(shapes[0][:-1])), shapes[0])
            layer.set_weights([kernel, *(rng.uniform(-0.1, 0.1, shape) for shape in shapes[1:])])
    return net


def images(size=(75, 64), channels=3):
    return np.random.default_rng(0).normal(size=(2, *size, channels)).astype(np.float32)
