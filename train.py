"""Train a network: python train.py --config=configs/x.py --config.optim.lr=0.2 --workdir=DIR"""

import datetime
import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from resnet_jax.config.flags import CONFIGS, is_study, parse_command, resolve_length
from resnet_jax.errors import UserError, command_line


def parse(argv: list[str]) -> tuple[ConfigDict, pathlib.Path]:
    """The config, overrides applied, and the workdir of a command line.

    Raises:
      UserError: an unknown key, a value of the wrong type, a config file that cannot be read.
    """

    def define(values):
        flags.DEFINE_string("workdir", None, "Run directory; default: a new one in runs/.", flag_values=values)

    command = parse_command(argv, CONFIGS / "default.py", __doc__, define)
    if is_study(command.config):
        raise UserError("--config: expected an experiment, found a study; run it with python -m resnet_jax.ablate")
    resolve_length(command.config, command.overrides)
    new = f"{command.experiment}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    return command.config, pathlib.Path(command.values.workdir or pathlib.Path("runs") / new)


if __name__ == "__main__":
    with command_line():
        config, workdir = parse(sys.argv)
        from resnet_jax import train  # after the command line is known to be good: it takes seconds

        train(config, workdir)
