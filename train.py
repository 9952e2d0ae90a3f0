"""Train a network: python train.py --config=configs/x.py --config.optim.lr=0.2 --workdir=DIR"""

import datetime
import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from resnet_jax.errors import UserError, exit_on_user_error

_HERE = pathlib.Path(__file__).parent


def parse(argv: list[str]) -> tuple[ConfigDict, pathlib.Path]:
    """The config, overrides applied, and the workdir of a command line.

    Raises:
      UserError: an unknown key, a value of the wrong type, a config file that cannot be read.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", str(_HERE / "configs" / "default.py"), "Experiment file.", flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "Folder of the run; default: a new one under runs/.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this text.", flag_values=values, short_name="h")
    try:
        rest = values(argv)[1:]
        config, overrides = values.config, config_flags.get_override_values(values["config"])
        config.is_locked  # noqa: B018  (a file that could not be read says so on first use)
    except (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError, ImportError) as error:
        raise UserError(f"--config: {str(error).strip()}") from None
    if rest:
        raise UserError(f"expected --config=FILE, --config.KEY=VALUE and --workdir=DIR, found {rest[0]!r}")
    if values.help:
        print(f"{__doc__}\n\nThe keys, with their defaults, stand in configs/default.py.")
        raise SystemExit
    _override_the_other_duration(config, overrides)
    return config, pathlib.Path(values.workdir or _new_workdir(values["config"]))


def _override_the_other_duration(config, overrides) -> None:
    # The two say the same thing in different units; the one on the command line wins.
    given = {"train.epochs", "train.steps"} & overrides.keys()
    if len(given) == 1:
        config.train["steps" if given == {"train.epochs"} else "epochs"] = None


def _new_workdir(config_flag) -> pathlib.Path:
    experiment = pathlib.Path(config_flags.get_config_filename(config_flag).split(":")[0]).stem
    return pathlib.Path("runs") / f"{experiment}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


if __name__ == "__main__":
    with exit_on_user_error():
        config, workdir = parse(sys.argv)
        from resnet_jax import loop  # after the command line is known to be good: it takes seconds

        loop.train(config, workdir)
