"""Command lines that name a config file and override its keys: --config=FILE --config.KEY=VALUE --workdir=DIR"""

import pathlib
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from resnet_jax.errors import UserError, did_you_mean


class Command(NamedTuple):
    """What a command line said.

    Attributes:
      config: locked, overrides applied.
      overrides: the keys that were given, with dots.
      experiment: name of the config file, without its folder and suffix.
      values: of all flags.
    """

    config: ConfigDict
    overrides: set[str]
    experiment: str
    values: flags.FlagValues


def parse_command(
    argv: list[str], default: pathlib.Path, description: str, define: Callable[[flags.FlagValues], None]
) -> Command:
    """Read a command line.

    Args:
      argv: as `sys.argv`.
      default: the config file if none is named.
      description: of the command, for --help.
      define: adds the command's own flags to --config and --help.

    Raises:
      UserError: an unknown key, a value of the wrong type, a config file that cannot be read.
    """
    overrides = [argument for argument in argv if re.match(r"--(no)?config\.", argument)]
    without_overrides = [argument for argument in argv if argument not in overrides]
    _check_keys(_parse_flags(without_overrides, default, description, define).config, overrides)
    values = _parse_flags(argv, default, description, define)
    return Command(
        values.config,
        set(config_flags.get_override_values(values["config"])),
        pathlib.Path(config_flags.get_config_filename(values["config"]).split(":")[0]).stem,
        values,
    )


def is_study(config: ConfigDict) -> bool:
    """Is this the config of a study, and not of a run?"""
    return {"title", "experiment", "cells", "seeds"} <= set(config)


def resolve_length(config: ConfigDict, given: Iterable[str]) -> None:
    """`train.epochs` and `train.steps` say the same thing in different units: the one given wins over the other."""
    lengths = {"train.epochs", "train.steps"} & set(given)
    if len(lengths) == 1:
        config.train["steps" if lengths == {"train.epochs"} else "epochs"] = None


def _parse_flags(argv, default, description, define) -> flags.FlagValues:
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_file(
            "config", str(default), "Config file.", flag_values=values, sys_argv=argv, lock_config=True
        )
        flags.DEFINE_bool("help", False, "Show this text.", short_name="h", flag_values=values)
        define(values)
        rest = values(argv)[1:]
        values.config.is_locked  # noqa: B018  (a file that was not found says so on first use)
    except OSError:
        path = config_flags.get_config_filename(values["config"]).split(":")[0]
        raise UserError(f"--config: expected a config file like {default.name}, found no {path}") from None
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, ImportError, SyntaxError) as error:
        raise UserError(f"command line: {str(error).strip().splitlines()[-1]}") from None
    if values.help:
        own = [f"--{name}: {values[name].help}" for name in values if name not in ("config", "help", "h", "?")]
        print("\n".join([description, "", *own, "", f"The keys of --config, with their defaults, stand in {default}."]))
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
