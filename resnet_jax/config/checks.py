"""Refusal of a config that cannot run, before anything compiles: each message names the field."""

import math
import operator

import ml_collections

from resnet_jax.data.augment import POLICIES
from resnet_jax.data.crops import INTERPOLATIONS, VIEWS
from resnet_jax.data.info import DATASETS, DatasetInfo
from resnet_jax.data.preprocessing import MAX_SIDE
from resnet_jax.data.reader import WORKERS
from resnet_jax.data.splits import check_dataset_name, number_of
from resnet_jax.data.verify import HOW
from resnet_jax.errors import UserError, did_you_mean
from resnet_jax.models import DOWNSAMPLES, MODELS, NORMS, SHORTCUTS, STEMS, attributes_of, own_norm
from resnet_jax.training.metrics import LOSSES
from resnet_jax.training.nonfinite import POLICIES as NONFINITE
from resnet_jax.training.optim import OPTIMIZERS, SCHEDULES
from resnet_jax.training.parallel import WRAPPERS
from resnet_jax.weights.pretrained import HEADS

METRICS = ("accuracy", "top5", "loss")

_CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "model.name": MODELS,
    "model.shortcut": SHORTCUTS,
    "model.stem": STEMS,
    "norm.name": NORMS,
    "head": HEADS,
    "norm.scope": ("local", "global", "group"),
    "model.downsample": DOWNSAMPLES,
    "data.loader": ("device", "stream"),
    "data.workers": WORKERS,
    "data.verify": HOW,
    "augment.view": VIEWS,
    "augment.policy": ("none", *POLICIES),
    "train.loss": LOSSES,
    "train.nonfinite": NONFINITE,
    "eval.interpolation": INTERPOLATIONS,
    "data.normalization": ("channel", "pixel_mean", "weights"),
    "optim.name": OPTIMIZERS,
    "optim.lr_scaling": ("none", "linear"),
    "optim.weight_decay_mode": ("l2", "decoupled"),
    "optim.schedule": SCHEDULES,
    "optim.warmup_shape": ("linear", "constant"),
    "parallel.wrapper": WRAPPERS,
    "checkpoint.on_error": ("stop", "continue"),
    "checkpoint.best_metric": (*METRICS, *(f"ema_{metric}" for metric in METRICS)),
}
_MAY_BE_NONE = (
    "model.shortcut model.stem norm.name norm.epsilon data.image_size data.num_workers eval.image_size "
    "eval.max_examples train.bce_threshold parallel.devices train.epochs train.steps"
).split()

_RANGES = {
    "at least 1": (
        lambda x: x >= 1,
        "norm.groups norm.group_size train.batch_size train.steps train.grad_accum_steps train.steps_per_call "
        "train.max_nonfinite parallel.devices parallel.check_every_steps eval.batch_size eval.max_examples "
        "checkpoint.keep log.every_steps "
        "augment.repeats",
    ),
    "1 to 16": (lambda x: 1 <= x <= 16, "augment.num_ops"),
    f"1 to {MAX_SIDE}": (lambda x: 1 <= x <= MAX_SIDE, "data.image_size eval.image_size"),
    "1 to 1024": (lambda x: 1 <= x <= 1024, "data.num_workers"),
    "more than 0": (lambda x: x > 0, "norm.epsilon optim.factor optim.power data.test_size"),
    "more than 0 and at most 1e9": (lambda x: 0 < x <= 1e9, "train.epochs"),
    "0 or more": (
        lambda x: x >= 0,
        "data.validation_size augment.pad_crop augment.cutout augment.mixup augment.cutmix augment.lighting "
        "augment.magnitude_std optim.lr "
        "optim.weight_decay optim.clip_norm optim.warmup_epochs optim.warmup_steps optim.warmup_from optim.end_lr "
        "checkpoint.every_minutes train.watchdog_seconds",
    ),
    "at least 0 and less than 1": (
        lambda x: 0 <= x < 1,
        "norm.momentum train.label_smoothing train.ema_decay optim.momentum optim.b1 optim.b2 data.max_corrupt "
        "model.stochastic_depth train.bce_threshold",
    ),
    "at least 5": (lambda x: x >= 5, "parallel.heartbeat_seconds"),
    "0 to 1": (lambda x: 0 <= x <= 1, "augment.erasing"),
    "0 to 30": (lambda x: 0 <= x <= 30, "augment.magnitude"),
    "more than 0 and at most 1": (lambda x: 0 < x <= 1, "eval.crop_fraction"),
    "0 to 4294967295": (lambda x: 0 <= x < 2**32, "seed"),
    "0.001 to 1e9": (lambda x: 0.001 <= x <= 1e9, "eval.every_epochs"),
    "more than 0 and less than 1": (lambda x: 0 < x < 1, "optim.peak_fraction"),
}


def check_config(config: ml_collections.ConfigDict) -> None:
    """Check every value on its own; raise `UserError` for the first that cannot be."""
    for field, choices in _CHOICES.items():
        value = operator.attrgetter(field)(config)
        if value not in choices and not (value is None and field in _MAY_BE_NONE):
            raise UserError(f"{field}: expected one of its names, found {value!r}; {did_you_mean(value, choices)}")
    for expected, (holds, fields) in _RANGES.items():
        for field in fields.split():
            value = operator.attrgetter(field)(config)
            if value is None and field in _MAY_BE_NONE:
                continue
            if (isinstance(value, float) and not math.isfinite(value)) or not holds(value):
                raise UserError(f"{field}: expected a finite number, {expected}, found {value}")
    _check_length(config)
    _check_training(config)
    _check_augmentation(config)
    _check_loader(config)
    if config.data.name in DATASETS:
        check_dataset(config, DATASETS[config.data.name])


def _check_scan(config: ml_collections.ConfigDict) -> None:
    """Refuse what treats each block on its own where several are one array."""
    optim, advice = config.optim, "try model.scan_blocks=False"
    if config.diagnostics.layers or config.diagnostics.lesions:
        raise UserError(
            "diagnostics.layers, diagnostics.lesions: expected False with model.scan_blocks, whose blocks do not run "
            f"one by one; {advice}, or convert the trained net by models.scan.unstack_blocks"
        )
    if optim.name not in ("sgd", "adamw"):
        raise UserError(
            f"optim.name: expected sgd or adamw with model.scan_blocks, found {optim.name}, whose update of a weight "
            f"depends on the whole array, here that of several blocks; {advice}"
        )
    patterns = {"freeze": (config.freeze,), "optim.weight_decay_params": (optim.weight_decay_params,)}
    patterns["optim.lr_factors"] = [pattern for pattern, _ in optim.lr_factors]
    for field, pattern in ((field, pattern) for field, given in patterns.items() for pattern in given):
        if "block" in pattern:
            raise UserError(
                f"{field}: expected a pattern of stages and layers with model.scan_blocks, found {pattern!r}: blocks "
                f"that are one in a loop cannot be told apart; {advice}"
            )


def _check_length(config: ml_collections.ConfigDict) -> None:
    if not all(isinstance(milestone, float) and 0 < milestone < 1 for milestone in config.optim.milestones):
        raise UserError(
            f"optim.milestones: expected fractions of the run between 0 and 1, found {tuple(config.optim.milestones)}"
        )
    if (config.train.epochs is None) == (config.train.steps is None):
        raise UserError(
            f"train.epochs, train.steps: expected one of them, found {config.train.epochs} and {config.train.steps}"
        )
    if config.optim.warmup_epochs and config.optim.warmup_steps:
        raise UserError(
            "optim.warmup_epochs, optim.warmup_steps: expected at most one of them, found "
            f"{config.optim.warmup_epochs} and {config.optim.warmup_steps}"
        )


def _check_training(config: ml_collections.ConfigDict) -> None:
    if config.log.every_steps % config.train.steps_per_call:
        raise UserError(
            f"log.every_steps: expected a multiple of train.steps_per_call ({config.train.steps_per_call}), "
            f"found {config.log.every_steps}"
        )
    if config.checkpoint.best_metric.startswith("ema_") and not config.train.ema_decay:
        raise UserError(
            f"checkpoint.best_metric: {config.checkpoint.best_metric} needs train.ema_decay above 0, found 0"
        )
    if config.train.bce_threshold is not None and config.train.loss != "bce":
        raise UserError(f"train.bce_threshold: expected None with train.loss={config.train.loss}, found a number")
    norm = config.norm.name or own_norm(config.model.name)["name"]
    if norm != "batch" and config.norm.scope != "local":
        raise UserError(
            f"norm.scope: only batch statistics are shared by devices; norm.name={norm} needs local, found "
            f"{config.norm.scope}"
        )
    if norm != "batch" and "norm" not in attributes_of(config.model.name):
        raise UserError(f"norm.name: {config.model.name} has no norms, found {norm}; leave it out")
    given = {"head": config.head != "keep", "freeze": bool(config.freeze)}
    given["data.normalization"] = config.data.normalization == "weights"
    for field in (field for field, on in given.items() if on and config.init_from is None):
        raise UserError(f"{field}: expected it with init_from alone, found no weights to begin with; add init_from")
    if not all(map(_is_factor, config.optim.lr_factors)):
        raise UserError(
            "optim.lr_factors: expected pairs of a regular expression and a factor, 0 or more, like "
            f'(("^stage1", 0.1),), found {tuple(config.optim.lr_factors)}'
        )
    if config.model.scan_blocks:
        _check_scan(config)


def _is_factor(pair) -> bool:
    is_pair = isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)
    return is_pair and isinstance(pair[1], int | float) and math.isfinite(pair[1]) and pair[1] >= 0


def _is_size(pair) -> bool:
    if len(pair) != 2 or not isinstance(pair[0], int | float) or not isinstance(pair[1], int):
        return False
    return 0 <= pair[0] < 1 and 1 <= pair[1] <= MAX_SIDE


def _check_augmentation(config: ml_collections.ConfigDict) -> None:
    augment = config.augment
    ranges = {
        "augment.area": (augment.area, lambda low, high: 0 < low <= high <= 1),
        "augment.short_sides": (augment.short_sides, lambda low, high: 1 <= low <= high),
    }
    for field, (pair, holds) in ranges.items():
        if len(pair) != 2 or not all(isinstance(bound, int | float) for bound in pair) or not holds(*pair):
            raise UserError(f"{field}: expected a lower and an upper bound, found {tuple(pair)}")
    jitter = [value for value in augment.jitter if isinstance(value, int | float)]
    if len(jitter) != len(augment.jitter) or len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        raise UserError(
            "augment.jitter: expected four numbers from 0 on, the last (hue) at most 0.5, found "
            f"{tuple(augment.jitter)}"
        )
    sizes = [tuple(pair) if isinstance(pair, list | tuple) else () for pair in augment.sizes]
    if not all(map(_is_size, sizes)) or sorted(sizes) != sizes:
        raise UserError(
            "augment.sizes: expected pairs of a fraction of the run, from 0 to less than 1 and rising, and a whole "
            f"number of pixels up to {MAX_SIDE}, found {tuple(augment.sizes)}"
        )
    if config.train.batch_size % augment.repeats:
        raise UserError(
            f"augment.repeats: expected a divisor of the {config.train.batch_size} images of a batch, found "
            f"{augment.repeats}"
        )


def _check_loader(config: ml_collections.ConfigDict) -> None:
    """Check abilities of the stream that the other loader lacks, and the other way round."""
    data, augment = config.data, config.augment
    check_dataset_name(data.name)
    fixed_size = data.name in DATASETS
    if data.loader == "device":
        only_streamed = {
            f"data.name={data.name}": not fixed_size,
            f"augment.view={augment.view}": augment.view != "center",
            "augment.sizes": len(augment.sizes) > 0,
            "augment.repeats": augment.repeats > 1,
            "eval.image_size": config.eval.image_size is not None,
        }
        for setting in (setting for setting, found in only_streamed.items() if found):
            raise UserError(f"data.loader: {setting} needs stream, found device; add --config.data.loader=stream")
        return
    if fixed_size and (len(augment.sizes) or config.eval.image_size):
        raise UserError(
            f"augment.sizes, eval.image_size: expected none for {data.name}, whose images are stored in one size"
        )
    if not fixed_size and data.image_size is None:
        raise UserError("data.image_size: expected a size, since stored images have many; found None; try 224")
    if config.train.steps_per_call > 1:
        raise UserError(
            f"train.steps_per_call: expected 1 with data.loader=stream, found {config.train.steps_per_call}"
        )
    if data.normalization == "pixel_mean":
        raise UserError("data.normalization: expected channel with data.loader=stream, found pixel_mean")


def check_dataset(config: ml_collections.ConfigDict, info: DatasetInfo) -> None:
    """Check the config against the metadata of its dataset."""
    if config.model.num_classes not in (None, info.num_classes):
        raise UserError(
            f"model.num_classes: expected {info.num_classes}, the classes of {config.data.name}, found "
            f"{config.model.num_classes}; leave it out to take what the data have"
        )
    train_size, held_out = info.splits["train"], 0
    if "validation" not in info.splits:
        held_out = number_of(config.data.validation_size, train_size)
    if held_out >= train_size:
        raise UserError(
            f"data.validation_size: expected fewer than the {train_size} training examples of {config.data.name}, "
            f"found {held_out}"
        )
    distinct = config.train.batch_size // config.augment.repeats
    if distinct > train_size - held_out:
        raise UserError(
            f"train.batch_size: expected at most the {train_size - held_out} training examples of {config.data.name}, "
            f"found {distinct} different ones in a batch; try "
            f"--config.train.batch_size={1 << (train_size - held_out).bit_length() - 1}"
        )
    colours = {"augment.policy": config.augment.policy != "none", "augment.jitter": any(config.augment.jitter)}
    colours["augment.lighting"] = config.augment.lighting > 0
    if info.image_shape and info.image_shape[2] != 3:
        for field in (field for field, on in colours.items() if on):
            raise UserError(f"{field}: expected images in colour, found {config.data.name}, which is grey")


def check_devices(config: ml_collections.ConfigDict, available: int, processes: int = 1) -> None:
    """Check the config against the number of devices and of processes."""
    if processes > 1 and (config.parallel.wrapper != "shard_map" or config.parallel.devices is not None):
        raise UserError(
            f"parallel: {processes} processes need parallel.wrapper shard_map and all devices, found "
            f"{config.parallel.wrapper} and parallel.devices {config.parallel.devices}"
        )
    devices = config.parallel.devices or available
    if devices > available:
        raise UserError(f"parallel.devices: expected at most the {available} of this machine, found {devices}")
    batch = config.train.batch_size
    if batch % devices:
        raise UserError(
            f"train.batch_size: expected a multiple of the {devices} devices, found {batch}; "
            f"try {batch - batch % devices or devices} or --config.parallel.devices=1"
        )
    if batch // devices % config.train.grad_accum_steps:
        raise UserError(
            f"train.grad_accum_steps: expected a divisor of {batch // devices}, the images per device, found "
            f"{config.train.grad_accum_steps}"
        )
    if (config.augment.mixup or config.augment.cutmix) and batch // devices % 2:
        raise UserError(
            "augment.mixup, augment.cutmix: images are mixed in pairs; expected an even number of images per device, "
            f"found {batch // devices} (train.batch_size {batch} on {devices} devices)"
        )
    if config.norm.scope == "group" and devices % config.norm.group_size:
        raise UserError(f"norm.group_size: expected a divisor of the {devices} devices, found {config.norm.group_size}")


def check_warmup(config: ml_collections.ConfigDict, warmup_steps: int, num_steps: int) -> None:
    """Check the warmup against the length of the run."""
    if warmup_steps >= num_steps:
        key = "warmup_steps" if config.optim.warmup_steps else "warmup_epochs"
        raise UserError(
            f"optim.warmup_epochs, optim.warmup_steps: expected a warmup shorter than the run of {num_steps} steps, "
            f"found {warmup_steps} steps; try a longer run (train.epochs, train.steps) or --config.optim.{key}=0"
        )
    if warmup_steps and config.optim.schedule == "triangular":
        raise UserError(
            "optim.warmup_epochs, optim.warmup_steps: triangular rises by itself; set optim.peak_fraction instead"
        )
    first_drop = min(config.optim.milestones, default=1.0) * num_steps
    if config.optim.schedule == "step" and warmup_steps >= first_drop:
        raise UserError(
            f"optim.milestones: expected the first after the warmup of {warmup_steps} steps, found step "
            f"{round(first_drop)}"
        )
