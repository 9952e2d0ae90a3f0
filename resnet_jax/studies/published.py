"""Published errors, each with the difference between its protocol and that of a config."""

import functools
import importlib.resources
import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import ml_collections

from resnet_jax.config.flags import get_config
from resnet_jax.config.stored import differences, flatten


class Published(NamedTuple):
    """A published error.

    Attributes:
      value_percent: top-1 error on the test split of CIFAR-10, or on ImageNet's validation images.
      source: paper and table.
      differences: between a config and the published protocol, in words; empty if there are none.
    """

    value_percent: float
    source: str
    differences: tuple[str, ...]


class _Table(NamedTuple):
    """A table of errors in `published.json`.

    Attributes:
      group, source: keys of its place there; `source` is the beginning of one.
      nets: the name that a net is published under, by `model.name` and `model.shortcut`.
      recipe: the experiment that is the protocol, but for the net, as `get_config` takes it.
      remarks: differences in evaluation (last weights, 1-crop, mean over seeds) that no config shows.
    """

    group: str
    source: str
    nets: Mapping[tuple[str, str | None], str]
    recipe: str
    remarks: tuple[str, ...] = ()


def published_values() -> dict:
    """The content of `published.json`."""
    return json.loads(importlib.resources.files("resnet_jax.studies").joinpath("published.json").read_text())


def published_error(config: ml_collections.ConfigDict) -> Published | None:
    """The error that was published for a net on a dataset; None if there is none for this net or these data.

    Args:
      config: config of a run, with today's keys.
    """
    found = flatten(config)
    net = (found["model.name"], found["model.shortcut"])
    for table in _TABLES:
        recipe = _protocol(table.recipe)
        if net in table.nets and found["data.name"] == recipe["data.name"]:
            group = published_values()[table.group]
            errors = next(errors for name, errors in group.items() if name.startswith(table.source))
            words = (*_in_words(recipe, found), *table.remarks)
            return Published(errors[table.nets[net]], table.source, words)
    return None


@functools.cache
def _protocol(recipe: str) -> Mapping:
    return flatten(get_config(recipe))


def _in_words(recipe: Mapping, found: Mapping) -> Iterator[str]:
    """Differences but for the net itself and what is harmless; the length of the run first."""
    if found["train.steps"] is None:
        yield f"train.epochs: {found['train.epochs']:g} here, {recipe['train.steps']} steps there"
    elif found["train.steps"] != recipe["train.steps"]:
        yield f"train.steps: {found['train.steps']} here, {recipe['train.steps']} there"
    for key, there, here in differences(recipe, found):
        if key not in (*_NET, *_LENGTH, *_HARMLESS) and not key.startswith(_HARMLESS_GROUPS):
            yield f"{key}: {here} here, {there} there"


_NET = ("model.name", "model.shortcut")
_LENGTH = ("train.epochs", "train.steps")  # one length in two units
# Keys that say where, how fast and how closely watched a run is, not what it computes. All others are compared, even
# where another key switches them off. `data.loader` too, though both loaders make the same batches: neither recipe can
# run with the other loader as it stands. `parallel.devices` too: batch statistics are those of a device.
_HARMLESS_GROUPS = ("checkpoint.", "diagnostics.", "log.")
_HARMLESS = (
    "seed model.num_classes data.data_dir data.workers data.num_workers data.verify data.max_corrupt "
    "train.steps_per_call train.watchdog_seconds "
    "parallel.wrapper parallel.distributed parallel.check_every_steps parallel.heartbeat_seconds "
    "eval.batch_size eval.every_epochs eval.test_curve"
).split()

_IMAGENET_REMARKS = (
    "learning rate divided by 10 whenever the error stopped falling there, by a schedule here",
    "the mean of each pixel subtracted there, of each colour here",
)
_DEEP = {(f"resnet{depth}_v1", option): f"resnet{depth}" for depth in (50, 101, 152) for option in (None, "B")}
_SHALLOW = {
    **{(f"plain{depth}", option): f"plain{depth}" for depth in (18, 34) for option in (None, "none")},
    **{("resnet18", "A"): "resnet18_A", ("resnet34", "A"): "resnet34_A"},
}
_OPTIONS = {("resnet34", None): "resnet34_B", ("resnet34", "B"): "resnet34_B", ("resnet34", "C"): "resnet34_C"}

_TABLES = (  # the first that fits: 1-crop before 10-crop, since ours is 1-crop
    _Table(
        "cifar10_test_error_percent",
        "He 2015 Table 6",
        {(f"resnet{depth}", option): f"resnet{depth}" for depth in (20, 32, 44, 56, 1202) for option in (None, "A")},
        "cifar10_he2015:resnet20",
    ),
    _Table(
        "cifar10_test_error_percent",
        "He 2015 Table 6",
        {("resnet110", None): "resnet110", ("resnet110", "A"): "resnet110"},
        "cifar10_he2015:resnet110",
        ("the best of 5 runs there (their mean is 6.61), the mean over seeds here",),
    ),
    _Table(
        "cifar10_test_error_percent",
        "He 2016",  # which warms up all its nets
        {(f"preact_resnet{depth}", None): f"preact_resnet{depth}" for depth in (110, 164, 1001)},
        "cifar10_he2015:resnet110",
        ("the median of 5 runs there, the mean over seeds here",),
    ),
    _Table(
        "imagenet_val_top1_error_percent",
        "He 2015 released models, 1-crop",
        _DEEP,
        "imagenet_he2015:resnet50_v1",
        _IMAGENET_REMARKS,
    ),
    _Table(
        "imagenet_val_top1_error_percent",
        "He 2015 Table 2, 10-crop",
        _SHALLOW,
        "imagenet_he2015:plain18",
        ("10-crop there, 1-crop here", *_IMAGENET_REMARKS),
    ),
    _Table(
        "imagenet_val_top1_error_percent",
        "He 2015 Table 3, 10-crop",
        _OPTIONS,
        "imagenet_he2015:resnet34",
        ("10-crop there, 1-crop here", *_IMAGENET_REMARKS),
    ),
)
