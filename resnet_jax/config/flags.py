"""Config files by name, and command lines: --config=NAME --config.KEY=VALUE --workdir=DIR"""

import contextlib
import datetime
import difflib
import importlib.util
import inspect
import itertools
import pathlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, get_args, get_origin

from absl import flags
from ml_collections import ConfigDict, config_flags

from resnet_jax.config import default
from resnet_jax.config.help import describe_experiments, describe_keys
from resnet_jax.config.stored import RENAMED, flatten, read_config_file
from resnet_jax.errors import UserError, did_you_mean
from resnet_jax.job.address import Address, given_address, launcher
from resnet_jax.workdir import absolute, make_workdir, writing

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
# What other programs call a key.
_FIRST_GUESSES = {
    "learning_rate": "optim.lr",
    "wd": "optim.weight_decay",
    "bs": "train.batch_size",
    "b": "train.batch_size",
    "optimizer": "optim.name",
    "opt": "optim.name",
    "arch": "model.name",
    "dataset": "data.name",
    "workers": "data.num_workers",
    "j": "data.num_workers",
    "num_epochs": "train.epochs",
    "img_size": "data.image_size",
    "output": "workdir",
    "output_dir": "workdir",
}


def get_config(name: str = "default") -> ConfigDict:
    """The config of an experiment, to be changed and trained.

    >>> config = get_config("cifar10_he2015:resnet56")
    >>> config.optim.lr = 0.05

    Args:
      name: a file of `configs/`, without its suffix, like "default" or "ablations/digits"; or the path of a file of
        your own; either with an argument of its `get_config` after a colon. Or the `config.json` of a run or a study.

    Raises:
      UserError: there is no such file, it cannot be loaded, or it takes no argument.
    """
    name, _, argument = str(name).partition(":")
    path = _find(name)
    if path.suffix == ".json":
        return read_config_file(path)
    if path.suffix != ".py":
        raise UserError(f"--config: expected a .py file, or the config.json of a run, found {path}")
    spec = importlib.util.spec_from_file_location(f"resnet_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise UserError(f"--config: expected a function get_config in {path}, found none")
        if argument:
            _check_choice(name, argument, inspect.signature(module.get_config))
        return module.get_config(argument) if argument else module.get_config()
    except UserError:
        raise
    except Exception as error:  # whatever is wrong in somebody's file
        raise UserError(f"--config: {path} cannot be loaded: {type(error).__name__}: {error}") from error


def _check_choice(name: str, argument: str, signature: inspect.Signature) -> None:
    """Refuse what a config file does not take after the colon; it may name its choices as a `Literal`."""
    if not signature.parameters:
        raise UserError(f"--config: expected no argument after {name}, found {argument!r}")
    annotation = next(iter(signature.parameters.values())).annotation
    choices = get_args(annotation)
    if get_origin(annotation) is Literal and argument not in choices:
        raise UserError(f"--config: expected one of {', '.join(choices)} after {name}:, found {argument!r}")


def _find(name: str) -> pathlib.Path:
    inside = re.sub(r"^(\./)?configs/", "", name)
    candidates = [pathlib.Path(name).expanduser(), CONFIGS / inside, CONFIGS / f"{inside}.py"]
    if found := next((path for path in candidates if path.is_file()), None):
        return found
    known = sorted(str(file.relative_to(CONFIGS).with_suffix("")) for file in CONFIGS.rglob("*.py"))
    raise UserError(f"--config: found no {name}; {did_you_mean(inside.removesuffix('.py'), known)}")


class Command(NamedTuple):
    """A parsed command line.

    Attributes:
      config: locked, overrides applied.
      overrides: keys that were given, with dots.
      experiment: name of the config file, without its folder and suffix.
      values: all flags.
      address: place in a job of several processes, if given.
    """

    config: ConfigDict
    overrides: set[str]
    experiment: str
    values: flags.FlagValues
    address: Address | None


def parse_command(
    argv: list[str], default_name: str, description: str, define: Callable[[flags.FlagValues], None]
) -> Command:
    """Read a command line.

    Args:
      argv: like `sys.argv`.
      default_name: config if none is named.
      description: text for --help.
      define: adds the command's own flags to --config and --help.

    Raises:
      UserError: an unknown key, a value of the wrong type, a config file that cannot be read, half an address.
    """
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "Show this text.", short_name="h", flag_values=values)
    define(values)
    _define_job(values)
    name, rest = _take_config(argv[1:], default_name)
    if any(argument in ("-h", "--help", "-help") for argument in rest):
        own = [f"  --{name}: {values[name].help}" for name in values if name not in ("help", "h", "?")]
        print("\n".join([description, "", *own, "", *describe_experiments(CONFIGS), "", *describe_keys()]))
        raise SystemExit
    config = get_config(name)
    rest = [_with_todays_key(argument) for argument in rest]
    for argument, following in zip(rest, [*rest[1:], "VALUE"], strict=False):
        if argument.startswith("-"):
            _check_argument(argument, following, config, values)
    nothing = [argument for argument in rest if argument.startswith("--config.") and argument.endswith("=None")]
    given = [argument for argument in rest if argument not in nothing]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=[argv[0], *given])
        unparsed = values([argv[0], *given])[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"command line: {str(error).strip().splitlines()[-1]}") from None
    if unparsed:
        raise UserError(f"expected --config=NAME, --config.KEY=VALUE and --workdir=DIR, found {unparsed[0]!r}")
    for argument in nothing:
        _set_none(values.config, argument.removeprefix("--config.").removesuffix("=None"))
    overrides = set(config_flags.get_override_values(values["config"]))
    address = given_address(values.coordinator, values.num_processes, values.process_id, values.coordinator_bind)
    return Command(values.config, overrides, _experiment(name), values, address)


def _take_config(arguments: list[str], default_name: str) -> tuple[str, list[str]]:
    """(the value of --config, the other arguments)."""
    name, rest, pending = default_name, [], False
    for argument in arguments:
        if pending or argument.startswith("--config="):
            name, pending = argument.removeprefix("--config="), False
        elif argument == "--config":
            pending = True
        elif argument == "None" and rest and re.fullmatch(r"--config\.[^=]+", rest[-1]):
            rest[-1] += "=None"
        else:
            rest.append(argument)
    if pending:
        raise UserError("--config: expected a name after it, found none")
    return name, rest


def _experiment(name: str) -> str:
    path = pathlib.Path(name.partition(":")[0])
    return path.absolute().parent.name if path.suffix == ".json" else path.stem


def _set_none(config: ConfigDict, key: str) -> None:
    own = key.removeprefix("experiment.")
    if own not in {name for name, value in flatten(default.get_config()).items() if value is None} | {"train.epochs"}:
        raise UserError(f"config.{key}: expected a value, found None")
    *path, last = key.split(".")
    for part in path:
        config = config[part]
    config[last] = None


def _define_job(values) -> None:
    of_job = {"flag_values": values}
    flags.DEFINE_string("coordinator", None, "HOST:PORT where process 0 of a job listens.", **of_job)
    flags.DEFINE_integer("num_processes", None, "Number of processes in the job.", **of_job)
    flags.DEFINE_integer("process_id", None, "Index of this process, from 0.", **of_job)
    flags.DEFINE_string(
        "coordinator_bind", None, "HOST:PORT that process 0 binds to; default: --coordinator.", **of_job
    )


def parse_training(
    argv: list[str], description: str
) -> tuple[ConfigDict, contextlib.AbstractContextManager, Address | None]:
    """The config of `train.py`, overrides applied; a context manager that gives its workdir; its place in a job.

    Raises:
      UserError: an unknown key, a value of the wrong type, a config file that cannot be read.
    """

    def define(values):
        flags.DEFINE_string("workdir", None, "Run directory; default: a new one in runs/.", flag_values=values)

    command = _parse_run(argv, description, define)
    config, workdir, address = command.config, command.values.workdir, command.address
    distributed = config.parallel.distributed
    if workdir is None and (address or distributed or (distributed is None and launcher() not in (None, "Kubernetes"))):
        raise UserError("--workdir: several processes need the same one; add --workdir=DIR")
    if workdir:
        return config, contextlib.nullcontext(workdir), address
    return config, new_workdir(pathlib.Path("runs"), f"{command.experiment}-{config.model.name}"), address


def parse_check(argv: list[str], description: str) -> tuple[ConfigDict, str | None, pathlib.Path]:
    """The config of `resnet_jax.doctor`, overrides applied, the topology, if any, and the workdir.

    Raises:
      UserError: an unknown key, a value of the wrong type, a config file that cannot be read.
    """

    def define(values):
        flags.DEFINE_string("topology", None, "TPUs to compile for, like v5e:16x16; or here.", flag_values=values)
        flags.DEFINE_string("workdir", "runs", "Run directory, or where runs lie.", flag_values=values)

    command = _parse_run(argv, description, define)
    return command.config, command.values.topology, absolute(command.values.workdir)


def _parse_run(argv, description, define) -> Command:
    command = parse_command(argv, "default", description, define)
    if is_study(command.config):
        raise UserError("--config: expected an experiment, found a study; run it with python -m resnet_jax.ablate")
    resolve_length(command.config, command.overrides)
    return command


@contextlib.contextmanager
def new_workdir(parent: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """Make `NAME-TIME` in a folder, with `-2` and so on where another job of the same second has it.

    It is removed again if nothing was written to it.

    Raises:
      UserError: the folder cannot be written.
    """
    make_workdir(parent)
    stem = f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    with writing(parent):
        workdir = next(filter(_make_if_free, (parent / f"{stem}{end}" for end in _endings())))
    try:
        yield workdir
    finally:
        with contextlib.suppress(OSError):  # not empty
            workdir.rmdir()


def _endings() -> Iterator[str]:
    return itertools.chain([""], (f"-{number}" for number in itertools.count(2)))


def _make_if_free(path: pathlib.Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


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


def _check_argument(argument: str, following: str, config: ConfigDict, values: flags.FlagValues) -> None:
    name, equals, value = argument.lstrip("-").partition("=")
    value = value if equals else "VALUE" if following.startswith("-") else following
    if re.match(r"(no)?config\.", name):
        _check_key(name.partition(".")[2], value, config)
    elif name not in values and name.removeprefix("no") not in values:
        raise UserError(f"{argument}: there is no such flag; {_suggestion(name, value, config, list(values))}")


def _check_key(key: str, value: str, config: ConfigDict) -> None:
    node = config
    for part in key.split("."):
        if not isinstance(node, ConfigDict):
            raise UserError(f"config.{key}: there is no such key; what stands before .{part} is a value")
        if part not in node:
            if guess := _guess(key.rpartition(".")[2], value, config):
                raise UserError(f"config.{key}: there is no such key; did you mean {guess}?")
            raise UserError(f"config.{key}: there is no such key; {did_you_mean(part, node)}")
        node = node[part]
    if isinstance(node, ConfigDict):
        guess = f"config.{key}.name={value}" if "name" in node else f"config.{key}.{next(iter(node))}=VALUE"
        raise UserError(f"config.{key}: expected one of its keys, like --{guess}")


def _suggestion(name: str, value: str, config: ConfigDict, own: list[str]) -> str:
    near = difflib.get_close_matches(name, [*_FIRST_GUESSES, *own, *(key.split(".")[-1] for key in flatten(config))], 1)
    if guess := _guess(name, value, config) or (near and near[0] not in own and _guess(near[0], value, config)):
        return f"did you mean {guess}?"
    return did_you_mean(name, [flag for flag in own if flag not in ("h", "?")]) + "; --help lists the keys of --config"


def _guess(name: str, value: str, config: ConfigDict) -> str:
    """The flags of the keys that a name may mean, or nothing."""
    word = name.replace("-", "_")
    word = _FIRST_GUESSES.get(word, word)
    if word == "workdir":
        return f"--workdir={value}"
    found = [key for key in flatten(config) if f".{key}".endswith((f".{word}", f".{word}.name"))]
    return " or ".join(f"--config.{key}={value}" for key in found)
