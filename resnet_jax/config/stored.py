"""Configs that earlier versions wrote: a key keeps loading under its old name, and an absent one takes its default."""

import json
import pathlib
from collections.abc import Iterator, Mapping

import ml_collections
from flax import traverse_util
from ml_collections.config_dict import placeholder

from resnet_jax.config import default
from resnet_jax.errors import UserError
from resnet_jax.workdir import read_json

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
_OLD_VALUES = {("data.workers", "auto"): "threads"}  # "auto" measured at the start which of the two was faster
# A key that a stored config lacks takes today's default, which so far is what the code did before the key came. Where
# it is not, the default of old runs belongs here.
_BEFORE_THE_KEY_CAME: dict[str, object] = {}
_STUDY = "title experiment cells seeds".split()


def read_config(workdir: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The locked config of a run or a study, with today's keys.

    Raises:
      UserError: the folder holds none, or one with keys that are not known.
    """
    path = pathlib.Path(workdir).expanduser() / "config.json"
    if not path.exists():
        raise UserError(f"workdir: expected the folder of a run, found no config.json in {path.parent}")
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
    values = {**_BEFORE_THE_KEY_CAME, **_todays(flatten(stored))}
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
    left, right = flatten(stored), flatten(given)
    for key in sorted({*left, *right}):
        values = left.get(key, "(no such key)"), right.get(key, "(no such key)")
        if values[0] != values[1]:
            yield key, *values


def check_same_config(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Raise `UserError`, which shows the difference, if a workdir belongs to another config."""
    if not (workdir / "config.json").exists():
        return
    differing = list(differences(read_config(workdir), config))
    # Earlier versions stored the number of classes that they found.
    differing = [entry for entry in differing if not (entry[0] == "model.num_classes" and entry[2] is None)]
    if differing:
        raise UserError(
            f"workdir: {workdir} belongs to another config; take another --workdir, or the same config:\n"
            + "\n".join(f"  {key}: {left!r} in the workdir, {right!r} given" for key, left, right in differing)
        )


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
        key: _OLD_VALUES.get((key, value), value) if isinstance(value, str) else value for key, value in found.items()
    }


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
