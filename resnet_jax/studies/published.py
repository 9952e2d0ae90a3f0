"""Which published error a config may be held against, and what differs between the two protocols."""

import importlib.resources
import json
from collections.abc import Mapping
from typing import NamedTuple


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
      group, source: where it stands there; a source begins with this.
      data: the config's `data.name`.
      nets: the name that a net is published under, by the config's `model.name` and `model.shortcut`.
      protocol: of the training, as config keys.
      remarks: what differs from our evaluation (last weights, 1-crop, mean over seeds) whatever the config.
    """

    group: str
    source: str
    data: str
    nets: Mapping[tuple[str, str | None], str]
    protocol: Mapping
    remarks: tuple[str, ...] = ()


def published_error(config: Mapping) -> Published | None:
    """The error that was published for a net on a data set; None if there is none for this net or these data.

    Args:
      config: of a run.
    """
    values = json.loads(importlib.resources.files("resnet_jax.studies").joinpath("published.json").read_text())
    net = (config["model"]["name"], config["model"]["shortcut"])
    for table in _TABLES:
        if config["data"]["name"] == table.data and net in table.nets:
            errors = next(errors for name, errors in values[table.group].items() if name.startswith(table.source))
            differences = (*_differences(config, table.protocol), *table.remarks)
            return Published(errors[table.nets[net]], table.source, differences)
    return None


def _differences(config: Mapping, protocol: Mapping) -> list[str]:
    found = {key: _get(config, key) for key in protocol}
    words = [
        f"{key}: {found[key]} here, {value} there"
        for key, value in protocol.items()
        if found[key] != value and key != "train.steps"
    ]
    if found["train.steps"] != protocol["train.steps"]:
        steps, epochs = found["train.steps"], _get(config, "train.epochs")
        length = f"train.steps: {steps} here" if steps is not None else f"train.epochs: {epochs:g} here"
        words.insert(0, f"{length}, {protocol['train.steps']}{' steps' * (steps is None)} there")
    return words


def _get(config: Mapping, key: str):
    for part in key.split("."):
        config = config[part]
    return tuple(config) if isinstance(config, list) else config  # as JSON has them


_SGD = {
    "precision": "float32",
    "model.stem": None,
    "model.downsample": "stride",
    "model.stochastic_depth": 0.0,
    "model.zero_init_last_scale": False,
    "norm.name": "batch",
    "norm.momentum": 0.9,
    "norm.epsilon": 1e-5,
    "train.microbatches": 1,
    "augment.sizes": (),
    "augment.repeats": 1,
    "augment.policy": "none",
    "augment.jitter": (0.0, 0.0, 0.0, 0.0),
    "augment.flip": True,
    "augment.cutout": 0,
    "augment.erasing": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "train.loss": "softmax",
    "train.label_smoothing": 0.0,
    "optim.name": "sgd",
    "optim.lr": 0.1,
    "optim.lr_scaling": "none",
    "optim.momentum": 0.9,
    "optim.nesterov": False,
    "optim.weight_decay": 1e-4,
    "optim.weight_decay_mode": "l2",
    "optim.weight_decay_params": ".*",
    "optim.clip_norm": 0.0,
    "optim.warmup_epochs": 0.0,
}
_CIFAR = {  # He et al. 2015, section 4.2
    "train.steps": 64_000,
    "train.batch_size": 128,
    "data.validation_size": 5000,
    "data.image_size": None,
    "data.normalization": "pixel_mean",
    "augment.view": "center",
    "augment.lighting": 0.0,
    "augment.crop": 4,
    "optim.schedule": "step",
    "optim.milestones": (0.5, 0.75),
    "optim.factor": 0.1,
    **_SGD,
}
_NO_WARMUP = {"optim.warmup_steps": 0}
_WARMUP = {"optim.warmup_steps": 400, "optim.warmup_shape": "constant", "optim.warmup_from": 0.01}
_IMAGENET = {  # He et al. 2015, section 3.4
    "train.steps": 600_000,
    "train.batch_size": 256,
    "data.image_size": 224,
    "augment.view": "scale_jitter",
    "augment.short_sides": (256, 480),
    "augment.lighting": 0.1,
    "augment.crop": 0,
    **_SGD,
    **_NO_WARMUP,
}
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
        "cifar10",
        {(f"resnet{depth}", option): f"resnet{depth}" for depth in (20, 32, 44, 56, 1202) for option in (None, "A")},
        {**_CIFAR, **_NO_WARMUP},
    ),
    _Table(
        "cifar10_test_error_percent",
        "He 2015 Table 6",
        "cifar10",
        {("resnet110", None): "resnet110", ("resnet110", "A"): "resnet110"},
        {**_CIFAR, **_WARMUP},
        ("the best of 5 runs there (their mean is 6.61), the mean over seeds here",),
    ),
    _Table(
        "cifar10_test_error_percent",
        "He 2016",
        "cifar10",
        {(f"preact_resnet{depth}", None): f"preact_resnet{depth}" for depth in (110, 164, 1001)},
        {**_CIFAR, **_WARMUP},
        ("the median of 5 runs there, the mean over seeds here",),
    ),
    _Table(
        "imagenet_val_top1_error_percent",
        "He 2015 released models, 1-crop",
        "imagenet2012",
        _DEEP,
        _IMAGENET,
        _IMAGENET_REMARKS,
    ),
    _Table(
        "imagenet_val_top1_error_percent",
        "He 2015 Table 2, 10-crop",
        "imagenet2012",
        _SHALLOW,
        _IMAGENET,
        ("10-crop there, 1-crop here", *_IMAGENET_REMARKS),
    ),
    _Table(
        "imagenet_val_top1_error_percent",
        "He 2015 Table 3, 10-crop",
        "imagenet2012",
        _OPTIONS,
        _IMAGENET,
        ("10-crop there, 1-crop here", *_IMAGENET_REMARKS),
    ),
)
