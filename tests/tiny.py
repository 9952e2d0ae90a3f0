"""A net and a config so small that a whole run takes seconds. As a script it trains: tiny.py WORKDIR KEY=VALUE ..."""

import ast
import functools
import sys

from configs import default
from resnet_jax.models import MODELS, layers
from resnet_jax.models.resnet import BasicBlock, ResNet

MODELS["tiny"] = functools.partial(
    ResNet,
    stage_sizes=(1, 1),
    block=BasicBlock,
    stem=layers.SMALL_IMAGE_STEM,
    shortcut=layers.zero_pad_shortcut,
    width=4,
)


def tiny_config(**overrides):
    """The default experiment with the tiny net on one device for 30 steps; overrides like `optim__lr=0.2`."""
    config = default.get_config()
    config.model.name = "tiny"
    config.train.batch_size = 64
    config.train.epochs = None
    config.train.steps = 30
    config.eval.every_epochs = 0.5
    config.log.every_steps = 4
    config.parallel.devices = 1
    for key, value in overrides.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    return config


if __name__ == "__main__":
    from resnet_jax import loop
    from resnet_jax.errors import command_line

    settings = dict(argument.split("=", 1) for argument in sys.argv[2:])
    with command_line():
        loop.train(tiny_config(**{key: ast.literal_eval(value) for key, value in settings.items()}), sys.argv[1])
