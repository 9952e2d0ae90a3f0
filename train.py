"""Train a network: python train.py --config=configs/x.py --config.optim.lr=0.2 --workdir=DIR"""

import datetime
import pathlib
import re
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from resnet_jax.errors import UserError, command_line, did_you_mean

_DEFAULT = pathlib.Path(__file__).parent / "configs" / "default.py"


def parse(argv: list[str]) -> tuple[ConfigDict, pathlib.Path]:
    """The config, overrides applied, and the workdir of a command line.

    Raises:
      UserError: an unknown key, a value of the wrong type, a config file that cannot be read.
    """
    overrides = [argument for argument in argv if re.match(r"--(no)?config\.", argument)]
    _check_keys(_parse_flags([argument for argument in argv if argument not in overrides]).config, overrides)
    values = _parse_flags(argv)
    config = values.config
    # The two say the same thing in different units; the one on the command line wins.
    given = {"train.epochs", "train.steps"} & config_flags.get_override_values(values["config"]).keys()
    if len(given) == 1:
        config.train["steps" if given == {"train.epochs"} else "epochs"] = None
    return config, pathlib.Path(values.workdir or _new_workdir(config_flags.get_config_filename(values["config"])))


def _parse_flags(argv: list[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_file(
            "config", str(_DEFAULT), "Experiment file.", flag_values=values, sys_argv=argv, lock_config=True
        )
        flags.DEFINE_string("workdir", None, "Folder of the run; default: a new one in runs/.", flag_values=values)
        flags.DEFINE_bool("help", False, "Show this text.", short_name="h", flag_values=values)
        rest = values(argv)[1:]
        values.config.is_locked  # noqa: B018  (a file that was not found says so on first use)
    except OSError:
        path = config_flags.get_config_filename(values["config"]).split(":")[0]
        raise UserError(f"--config: expected an experiment file like configs/default.py, found no {path}") from None
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, ImportError, SyntaxError) as error:
        raise UserError(f"command line: {str(error).strip().splitlines()[-1]}") from None
    if values.help:
        print(f"{__doc__}\n\nThe keys, with their defaults, stand in {_DEFAULT}.")
        raise SystemExit
    if rest:
        raise UserError(f"expected --config=FILE, --config.KEY=VALUE and --workdir=DIR, found {rest[0]!r}")
    return values


def _check_keys(config: ConfigDict, overrides: list[str]) -> None:
    for override in overrides:
        key = re.match(r"--(?:no)?config\.([^=]*)", override)[1]
        node = config
        for part in key.split("."):
            if not isinstance(node, ConfigDict):
                raise UserError(f"config.{key}: there is no such key; what stands before .{part} is a value")
            if part not in node:
                raise UserError(f"config.{key}: there is no such key; {did_you_mean(part, node)}")
            node = node[part]
        if isinstance(node, ConfigDict):
            raise UserError(f"config.{key}: expected one of its keys, like config.{key}.{next(iter(node))}=VALUE")


def _new_workdir(config_file: str) -> pathlib.Path:
    experiment = pathlib.Path(config_file.split(":")[0]).stem
    return pathlib.Path("runs") / f"{experiment}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


if __name__ == "__main__":
    with command_line():
        config, workdir = parse(sys.argv)
        from resnet_jax import loop  # after the command line is known to be good: it takes seconds

        loop.train(config, workdir)
