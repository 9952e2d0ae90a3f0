"""Config files by name, and command lines: --config=FILE --config.KEY=VALUE --workdir=DIR"""

import importlib.util
import inspect
import pathlib
import re
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from resnet_jax.config.stored import RENAMED
from resnet_jax.errors import UserError, did_you_mean

_KEYS = f"{pathlib.Path(__file__).parent / 'default.py'} lists the keys of --config with their defaults."
CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def get_config(name: str = "default") -> ConfigDict:
    """The config of an experiment, to be changed and trained.

    >>> config = get_config("cifar10_he2015:resnet56")
    >>> config.optim.lr = 0.05

    Args:
      name: a file of `configs/`, without its suffix, like "default" or "ablations/digits"; or the path of a file of
        your own; either with an argument of its `get_config` after a colon.

    Raises:
      UserError: there is no such file, or it takes no argument.
    """
    name, _, argument = str(name).partition(":")
    path = pathlib.Path(name) if name.endswith(".py") else CONFIGS / f"{name}.py"
    if not path.is_file():
        known = sorted(str(file.relative_to(CONFIGS).with_suffix("")) for file in CONFIGS.rglob("*.py"))
        raise UserError(f"config: found no {path}; {did_you_mean(name, known)}")
    spec = importlib.util.spec_from_file_location(f"resnet_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"config: expected a function get_config in {path}, found none")
    takes_argument = bool(inspect.signature(module.get_config).parameters)
    if argument and not takes_argument:
        raise UserError(f"config: expected no argument after {name}, found {argument!r}")
    return module.get_config(argument) if argument else module.get_config()


class Command(NamedTuple):
    """A parsed command line.

    Attributes:
      config: locked, overrides applied.
      overrides: keys that were given, with dots.
      experiment: name of the config file, without its folder and suffix.
      values: all flags.
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
      argv: like `sys.argv`.
      default: config file if none is named.
      description: text for --help.
      define: adds the command's own flags to --config and --help.

    Raises:
      UserError: an unknown key, a value of the wrong type, a config file that cannot be read.
    """
    argv = [_with_todays_key(argument) for argument in argv]
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


def _with_todays_key(argument: str) -> str:
    match = re.match(r"(--(?:no)?config\.(?:experiment\.)?)([^=]*)(.*)", argument, re.DOTALL)
    if not match or match[2] not in RENAMED:
        return argument
    warnings.warn(f"config.{match[2]} is called config.{RENAMED[match[2]]} now", stacklevel=1)
    return match[1] + RENAMED[match[2]] + match[3]


def is_study(config: ConfigDict) -> bool:
    """True for the config of a study, False for that of a run."""
    return {"title", "experiment", "cells", "seeds"} <= set(config)


def resolve_length(config: ConfigDict, given: Iterable[str]) -> None:
    """Drop the other of `train.epochs` and `train.steps`, the length of a run in two units, if one was given."""
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
        print("\n".join([description, "", *own, "", _KEYS]))
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
