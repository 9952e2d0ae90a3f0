"""A net and a config so small that a whole run takes seconds. As a script it trains: tiny.py WORKDIR KEY=VALUE ..."""

# ruff: noqa: E402
if __name__ == "__main__":
    from resnet_jax import signals

    signals.end_outside_of_training()  # before the rest is imported, as in train.py

import ast
import functools
import sys

from resnet_jax.config import default
from resnet_jax.config.build import Assembly, initial_state, make_recipe, random_keys
from resnet_jax.models import MODELS, SHORTCUTS, STEMS
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.resnet import ResNet

MODELS["tiny"] = functools.partial(
    ResNet,
    stage_sizes=(1, 1),
    block=BasicBlock,
    stem=STEMS["small"],
    shortcut=SHORTCUTS["A"],
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


def build(config):
    """(recipe, program, initial state on the devices) of a run."""
    recipe = make_recipe(config)
    assembly = Assembly(recipe)
    program = assembly.program(random_keys(config.seed)[0])
    return recipe, program, assembly.parallel.replicate(initial_state(recipe))


if __name__ == "__main__":
    from resnet_jax.commands import command_line
    from resnet_jax.config.train import train

    settings = dict(argument.split("=", 1) for argument in sys.argv[2:])
    with command_line():
        train(tiny_config(**{key: ast.literal_eval(value) for key, value in settings.items()}), sys.argv[1])
