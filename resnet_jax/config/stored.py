"""Configs that earlier versions wrote: a key keeps loading under its old name, and an absent one takes its default."""

import json
import pathlib
from collections.abc import Iterator, Mapping

import ml_collections
from flax import traverse_util
from ml_collections.config_dict import placeholder

from resnet_jax.config import default
from resnet_jax.errors import UserError
from resnet_jax.models import MODELS, own_norm
from resnet_jax.workdir import local_path, read_json

RENAMED = {
    "precision": "dtype",
    "data.max_damaged": "data.max_corrupt",
    "augment.crop": "augment.pad_crop",
    "train.microbatches": "train.grad_accum_steps",
    "train.steps_per_dispatch": "train.steps_per_call",
    "optim.peak_at": "optim.peak_fraction",
    "measure.layers": "diagnostics.layers",
    "measure.lesions": "diagnostics.lesions",
    "measure.precise_statistics": "diagnostics.precise_statistics",
    "runs_at_once": "replicas",  # of a study
}
_OLD_VALUES = {
    ("data.workers", "auto"): "threads",  # it measured at the start which of the two was faster
    ("parallel.distributed", False): None,  # None joins a job where there is one
}
# Keys that may change when a run is resumed: the result does not depend on them. Data are known by their digest.
NOT_OF_THE_RESULT = (
    *("data.data_dir", "data.workers", "data.num_workers", "data.max_corrupt", "data.verify"),
    *("eval.batch_size", "log.every_steps", "checkpoint.keep", "checkpoint.every_minutes"),
    *("checkpoint.on_error", "train.watchdog_seconds"),
    *("train.nonfinite", "train.max_nonfinite"),  # of a run whose numbers are finite
    *("parallel.distributed", "parallel.check_every_steps", "parallel.heartbeat_seconds"),
)
LENGTH = ("train.epochs", "train.steps", "optim.milestones")
_WITH_SPLITS = ("folder", "tar")  # data that may come with a validation split
_STUDY = "title experiment cells seeds".split()


def read_config(workdir: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The locked config of a run or a study, with today's keys.

    Raises:
      UserError: the folder holds none, or one with keys that are not known.
    """
    path = local_path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"workdir: expected the folder of a run, found no config.json in {path.parent}")
    return read_config_file(path)


def names_in_config(workdir: str | pathlib.Path) -> tuple[str, str]:
    """(model, data) of a run by their names; of a folder or of tar shards with the name of their directory.

    Raises:
      UserError: see `read_config`.
    """
    config = read_config(workdir)
    folder = config.data.data_dir if config.data.name in ("folder", "tar") else None
    return config.model.name, f"{config.data.name} {pathlib.Path(folder).name}" if folder else config.data.name


def read_config_file(path: pathlib.Path) -> ml_collections.ConfigDict:
    """The locked config in a `config.json`; see `read_config`."""
    stored = read_json(path)
    if set(_STUDY) <= stored.keys():
        return _upgrade_study(stored, path)
    return upgrade(stored, path)


def upgrade(stored: Mapping, where: object = "config") -> ml_collections.ConfigDict:
    """A locked config with today's keys, from what any version stored.

    Raises:
      UserError: a key that no version up to this one has had, or a value of another type.
    """
    config = default.get_config()
    values = _todays(flatten(stored))
    # A key that is absent takes today's default, which is what the code did before the key came; but here.
    if values.get("data.name") in _WITH_SPLITS:
        values.setdefault("data.use_validation_split", False)
    known = flatten(config)
    if unknown := [key for key in values if key not in known]:
        raise UserError(f"{where}: {unknown[0]} is no key of this version; was it written by a newer one?")
    try:
        config.update_from_flattened_dict(values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}; mend or move it") from None
    return config


def renamed(key: str) -> str:
    """Today's name of a key, given with or without a study's "experiment." before it."""
    prefix = "experiment." if key.startswith("experiment.") else ""
    return prefix + RENAMED.get(key.removeprefix(prefix), key.removeprefix(prefix))


def flatten(config: Mapping) -> dict:
    """The values of a config by key with dots; lists and tuples alike are tuples."""
    values = json.loads(config.to_json()) if isinstance(config, ml_collections.ConfigDict) else config
    return {key: _tuples(value) for key, value in traverse_util.flatten_dict(values, sep=".").items()}


def differences(stored: Mapping, given: Mapping) -> Iterator[tuple[str, object, object]]:
    """(key, stored value, given value) where two configs differ; "(no such key)" where one lacks it."""
    left, right = _with_own_norm(flatten(stored)), _with_own_norm(flatten(given))
    for key in sorted({*left, *right}):
        values = left.get(key, "(no such key)"), right.get(key, "(no such key)")
        if values[0] != values[1]:
            yield key, *values


def _with_own_norm(values: dict) -> dict:
    """The values, with the norm that None stands for."""
    if values.get("model.name") not in MODELS or "norm.name" not in values:
        return values
    own = own_norm(values["model.name"])
    norm = values["norm.name"] or own["name"]
    epsilon = values["norm.epsilon"] or (own.get("epsilon", 1e-5) if norm == own["name"] else 1e-5)
    return {**values, "norm.name": norm, "norm.epsilon": epsilon}


def with_old_defaults(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config, with what a key meant before it came where the run of a workdir does not have it yet."""
    return without_validation_split(config) if lacks_validation_key(workdir, config) else config


def lacks_validation_key(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> bool:
    """True where a run began, on data that may come divided, before `data.use_validation_split` came."""
    path = workdir / "config.json"
    divided = config.data.name in _WITH_SPLITS and path.exists()
    return divided and "use_validation_split" not in read_json(path).get("data", {})


def without_validation_split(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config as it was meant then."""
    config = config.copy_and_resolve_references()
    config.data.use_validation_split = False
    return config


def changes(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> dict[str, tuple]:
    """The keys by which a config differs from that of a workdir, of those that may, with the old and the new value.

    Those of `LENGTH` may change if the learning rates so far stay the same, which is for the caller to check.

    Raises:
      UserError: another key differs; the difference is shown.
    """
    if not (workdir / "config.json").exists():
        return {}
    differing = {key: (old, new) for key, old, new in differences(read_config(workdir), config)}
    if differing.get("model.num_classes", (None, 0))[1] is None:  # earlier versions stored the number that they found
        del differing["model.num_classes"]
    if wrong := {key: values for key, values in differing.items() if key not in (*NOT_OF_THE_RESULT, *LENGTH)}:
        raise UserError(
            f"workdir: {workdir} belongs to another config; take another --workdir, or the same config:\n"
            + "\n".join(f"  {key}: {old!r} in the workdir, {new!r} given" for key, (old, new) in wrong.items())
        )
    return differing


def _upgrade_study(stored: Mapping, where: pathlib.Path) -> ml_collections.ConfigDict:
    values = {renamed(key): value for key, value in stored.items()}
    study = ml_collections.ConfigDict()
    study.title = values["title"]
    study.experiment = upgrade(values["experiment"], where)
    study.cells = tuple({**cell, "overrides": _todays(cell["overrides"])} for cell in values["cells"])
    study.seeds = tuple(values["seeds"])
    study.replicas = placeholder(int)
    study.replicas = values.get("replicas")
    return study.lock()


def _todays(values: Mapping) -> dict:
    """Values by today's keys, and today's values for those that are gone."""
    found = {renamed(key): value for key, value in values.items()}
    return {
        key: _OLD_VALUES.get((key, value), value) if isinstance(value, str | bool) else value
        for key, value in found.items()
    }


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
