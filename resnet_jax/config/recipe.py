"""The recipe of a run: what a config means for a dataset. Pure: no data, no devices, nothing is compiled."""

import collections
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
from flax import traverse_util

from resnet_jax.checkpoint.card import ModelCard, variable_shapes
from resnet_jax.config.checks import check_config, check_dataset, check_warmup
from resnet_jax.data.info import DatasetInfo
from resnet_jax.data.order import steps_for_epochs
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.data.splits import SPLIT_SETTINGS, number_of
from resnet_jax.errors import UserError
from resnet_jax.models import attributes_of, create_model, own_norm
from resnet_jax.models.profile import Layer, depth, profile, totals
from resnet_jax.training.optim import make_optimizer, make_schedule, path_mask


class Recipe:
    """Model, optimizer, durations and cadence, from a config and the metadata of its dataset.

    Attributes:
      config, info: as given.
      data_name, max_corrupt, max_examples, test_curve, batch_size, nonfinite, max_nonfinite, wants_lesions,
      wants_precise_statistics, watchdog_seconds: see default.py.
      on_save_error: see checkpoint.on_error there.
      seconds_between_saves: of checkpoints without an evaluation.
      image_shape: (height, width, channels) of the model's input.
      model: without a device axis: batch statistics are those of the images that it is called with.
      num_examples, num_validation: sizes of the training split, without what is held out, and the validation split.
      num_steps, warmup_steps: in steps.
      peak_lr: learning rate after the warmup, scaled with the batch.
      schedule: learning rate by step.
      optimizer: keeps its peak learning rate in its state.

    Raises:
      UserError: a config that cannot run on any machine.
    """

    def __init__(self, config: ml_collections.ConfigDict, info: DatasetInfo):
        check_config(config)
        check_dataset(config, info)
        self.config, self.info = config, info
        self.data_name, self.max_corrupt = config.data.name, config.data.max_corrupt
        self.test_curve, self.batch_size = config.eval.test_curve, config.train.batch_size
        self.max_examples = config.eval.max_examples
        self.seconds_between_saves = 60 * config.checkpoint.every_minutes or math.inf
        self.nonfinite, self.max_nonfinite = config.train.nonfinite, config.train.max_nonfinite
        self.on_save_error = config.checkpoint.on_error
        self.watchdog_seconds = config.train.watchdog_seconds
        self.wants_lesions = config.diagnostics.lesions
        self.wants_precise_statistics = config.diagnostics.precise_statistics
        self.image_shape = self._image_shape()
        self.model = self.create_model()
        held_out = number_of(config.data.validation_size, info.splits["train"])
        self.num_validation = info.splits.get("validation", held_out)
        self.num_examples = info.splits["train"] - (0 if "validation" in info.splits else held_out)

        train, optim = config.train, config.optim
        steps = functools.partial(steps_for_epochs, num_examples=self.num_examples, batch_size=train.batch_size)
        self.num_steps = train.steps or steps(train.epochs)
        self.warmup_steps = optim.warmup_steps or steps(optim.warmup_epochs)
        check_warmup(config, self.warmup_steps, self.num_steps)
        self._steps_for_epochs = steps
        if self.num_steps >= 2**31:
            raise UserError(f"train.epochs, train.steps: expected fewer than 2**31 steps, found {self.num_steps:,}")

        self.peak_lr = optim.lr * (train.batch_size / 256 if optim.lr_scaling == "linear" else 1.0)
        self.schedule = self._make_schedule(self.peak_lr)
        self.optimizer = self._make_optimizer()
        # Refuses images that the model cannot take, and a weight decay mask that matches nothing.
        self.variable_shapes = variable_shapes(self.model, self.image_shape)
        jax.eval_shape(self.optimizer.init, self.variable_shapes["params"])

    # --- the model ---

    @property
    def model_settings(self) -> dict:
        """Keyword arguments of `create_model`, plain JSON."""
        config = self.config
        base = {"name": config.model.name, "num_classes": self.info.num_classes, "dtype": config.dtype}
        return {**base, **model_attributes(config)}

    def create_model(self, **norm_settings):
        """The model, its batch norms (if any) with further settings."""
        settings = self.model_settings
        if self.config.freeze:
            norm_settings["frozen"] = self.config.freeze
        if norm_settings and settings.get("norm", {}).get("name") == "batch":
            settings["norm"] = {**settings["norm"], **norm_settings}
        return create_model(**{**settings, "dtype": jnp.dtype(settings["dtype"])})

    def batch_statistics_axis(self, parallel) -> dict:
        """Settings of batch norms that share their statistics over devices as `norm.scope` says."""
        return parallel.batch_statistics_axis(self.config.norm.scope, self.config.norm.group_size)

    def check_batch_statistics(self, devices: int) -> None:
        """Refuse batch statistics over one value per channel: they make every output the shift.

        Raises:
          UserError: the layer, and what to try.
        """
        train, norm = self.config.train, self.config.norm
        shared = {"local": 1, "global": devices, "group": norm.group_size}[norm.scope]
        images = train.batch_size // devices // train.grad_accum_steps * shared
        stats = traverse_util.flatten_dict(self.variable_shapes.get("batch_stats", {}))
        names = {"/".join(path[:-1]) for path in stats}
        grown = [(size, size, self.image_shape[2]) for _, size in self.config.augment.sizes]
        smallest = min([self.image_shape, *grown], key=math.prod)
        for layer in profile(self.model, smallest) if images == 1 else ():
            if layer.name in names and math.prod(layer.output_shape[:-1]) == 1:
                raise UserError(
                    f"norm: {layer.name} would normalise over one value per channel: 1 image on a device "
                    f"({train.batch_size} on {devices}, in {train.grad_accum_steps} microbatches), 1x1 there; try a "
                    "larger train.batch_size or data.image_size, norm.scope=global, or norm.name=group"
                )

    @functools.cached_property
    def layers(self) -> list[Layer]:
        """The cost of each layer, in the order of the forward pass."""
        return profile(self.model, self.image_shape)

    @property
    def num_parameters(self) -> int:
        """Trainable weights."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.variable_shapes["params"]))

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the forward pass for one image."""
        return totals(self.layers)[1]

    @property
    def depth(self) -> int:
        """The number in a net's name; see `profile.depth`."""
        return depth(self.layers)

    # --- the data ---

    def _image_shape(self) -> tuple[int, int, int]:
        size = self.config.data.image_size
        return (size, size, self.stored_shape[2]) if size else self.stored_shape

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the uint8 images that a loader gives, before any resizing on the device."""
        size = self.config.data.image_size
        return self.info.image_shape or (size, size, 3)

    @property
    def train_shapes(self) -> list[tuple[int, tuple[int, int, int]]]:
        """(first step, (height, width, channels)) of the uint8 images of training: they may grow."""
        channels = self.stored_shape[2]
        grown = [
            (math.ceil(start * self.num_steps), (size, size, channels)) for start, size in self.config.augment.sizes
        ]
        return [(0, self.stored_shape), *grown]

    def preprocessing(self, mean_image: list | None = None) -> dict:
        """Keyword arguments of `Preprocessing`, plain JSON."""
        info, evaluation = self.info, self.config.eval
        height, _, channels = self.stored_shape
        fixed = info.fixed_size
        return {
            "size": height if fixed else evaluation.image_size or height,
            "crop_fraction": None if fixed else evaluation.crop_fraction,
            "interpolation": evaluation.interpolation,
            "channel_order": "RGB" if channels == 3 else "L",
            "mean": list(info.mean),
            "std": list(info.std),
            "mean_image": mean_image,
            "resize": self.config.data.image_size if fixed else None,
        }

    def create_preprocessing(self, mean_image: list | None = None) -> Preprocessing:
        """The function from images to model input."""
        return Preprocessing(**self.preprocessing(mean_image), class_names=self.info.class_names)

    def card(self, source: dict, mean_image: list | None = None) -> ModelCard:
        """The model card; `source` says where the weights came from."""
        data = self.config.data
        return ModelCard(
            model=self.model_settings,
            input_shape=self.image_shape,
            class_names=tuple(self.info.class_names),
            preprocessing=self.preprocessing(mean_image),
            data={name: data[name] for name in SPLIT_SETTINGS},
            source=source,
            best_metric=self.config.checkpoint.best_metric,
            max_corrupt=data.max_corrupt,
        )

    def describe(self, device_kinds: Sequence[str], xla_flags: str, workdir: object) -> dict[str, str]:
        """The recipe in words, for the start screen."""
        config, optim = self.config, self.config.optim
        devices = ", ".join(f"{count} x {kind}" for kind, count in collections.Counter(device_kinds).items())
        height, width, channels = self.image_shape
        sizes = {
            "train": self.num_examples,
            "validation": self.num_validation,
            "test": self.info.splits["test"],
        }
        if self.max_examples:
            sizes |= {name: min(sizes[name], self.max_examples) for name in ("validation", "test")}
        origins = {name: f" ({origin})" for name, origin in self.info.origins.items()}
        splits = ", ".join(f"{size:,} {name}{origins.get(name, '')}" for name, size in sizes.items() if size)
        trial = f" (eval.max_examples={self.max_examples})" if self.max_examples else ""
        scaled = f" ({optim.lr} scaled to the batch)" if optim.lr_scaling != "none" else ""
        warmup = f", {self.warmup_steps:,} steps of warmup" if self.warmup_steps else ""
        return {
            "devices": f"{devices}, {config.parallel.wrapper}, {config.norm.scope} batch statistics",
            **({"XLA_FLAGS": xla_flags} if xla_flags else {}),
            "model": f"{config.model.name}, {config.dtype}",
            **({"weights": f"from {config.init_from}"} if config.init_from else {}),
            "parameters": f"{self.num_parameters:,}" + (f", frozen: {config.freeze}" if config.freeze else ""),
            "multiply-adds": f"{self.multiply_adds:,} per image",
            "data": f"{self.data_name}: {splits}{trial}; {self.info.num_classes} classes, {height}x{width}x{channels}",
            "steps": f"{self.num_steps:,} of {self.batch_size} images, {self.epoch(self.num_steps):.1f} epochs",
            "optimizer": f"{optim.name}, weight decay {optim.weight_decay} ({optim.weight_decay_mode}, on "
            f"{optim.weight_decay_params})",
            "schedule": f"{optim.schedule}, learning rate {self.peak_lr:g}{scaled}{warmup}",
            "workdir": str(workdir),
        }

    # --- the optimizer ---

    def _make_schedule(self, peak_lr):
        optim = self.config.optim
        settings = ("warmup_shape", "warmup_from", "milestones", "factor", "power", "peak_fraction")
        return make_schedule(
            optim.schedule,
            peak_lr,
            self.num_steps,
            warmup_steps=self.warmup_steps,
            end=optim.end_lr,
            **{name: optim[name] for name in settings},
        )

    def _make_optimizer(self):
        optim = self.config.optim
        settings = "momentum nesterov b1 b2 weight_decay weight_decay_mode weight_decay_params clip_norm lr_factors"
        settings = {name: optim[name] for name in settings.split()}
        return make_optimizer(optim.name, self.peak_lr, self._make_schedule, frozen=self.frozen, **settings)

    @property
    def frozen(self) -> Callable | None:
        """A function from parameters to a tree of bools, True for those that stay; None if all are trained."""
        return path_mask(self.config.freeze, "freeze") if self.config.freeze else None

    @functools.cached_property
    def _jitted_schedule(self):
        return jax.jit(self.schedule)

    def learning_rate(self, step: int) -> float:
        """The rate of the update that follows `step` updates."""
        return float(self._jitted_schedule(step))

    @property
    def objective(self) -> dict:
        """Keyword arguments of `step.make_gradient`."""
        names = ("loss", "label_smoothing", "bce_threshold", "grad_accum_steps")
        return {**{name: self.config.train[name] for name in names}, "frozen": self.frozen}

    # --- durations and cadence ---

    def epoch(self, step: int) -> float:
        """Epochs seen after `step` steps."""
        return step * self.config.train.batch_size / self.num_examples

    def is_eval_step(self, step: int) -> bool:
        """True if an evaluation and a checkpoint are due after this step: every `eval.every_epochs`, and the last."""
        every = self.config.eval.every_epochs
        nearest = round(self.epoch(step) / every)
        due = (self._steps_for_epochs(count * every) for count in (nearest - 1, nearest, nearest + 1) if count > 0)
        return step == self.num_steps or step in due

    def is_log_step(self, step: int) -> bool:
        """True if a line of training metrics is due after this step."""
        return step % self.config.log.every_steps == 0 or self.is_eval_step(step)

    def is_check_due(self, before: int, step: int) -> bool:
        """True if the devices are to be compared after this step: every so many steps, and before an evaluation."""
        every = self.config.parallel.check_every_steps
        return step // every > before // every or self.is_eval_step(step)

    def is_diagnosis_step(self, step: int) -> bool:
        """True if a look inside the net is due after this step: at the start, every `log.every_steps`, at the end."""
        due = step % self.config.log.every_steps == 0 or step == self.num_steps
        return self.config.diagnostics.layers and due

    def steps_in_call(self, step: int) -> int:
        """Number of steps of the next call: `steps_per_call` if nothing is due before its end, or one.

        A function of the step alone, so that a resumed run uses the same programs as an uninterrupted one.
        """
        count = self.config.train.steps_per_call
        inside = range(step + 1, step + count)
        fits = step % count == 0 and step + count <= self.num_steps and not any(map(self.is_log_step, inside))
        return count if fits else 1

    def images_of_epochs(self, first: int, last: int) -> int:
        """Images of all epochs that the steps from `first` to before `last` have begun, repeats included.

        An epoch counts as a whole once it has begun, since its corrupt images may lie anywhere in it.
        """
        repeats = self.config.augment.repeats
        distinct = self.config.train.batch_size // repeats
        epochs = math.ceil(last * distinct / self.num_examples) - first * distinct // self.num_examples
        return epochs * self.num_examples * repeats


def model_attributes(config: ml_collections.ConfigDict) -> dict:
    """Attributes of the model that a config sets: keyword arguments of `create_model`, plain JSON."""
    model, norm = config.model, config.norm
    names = ("shortcut", "stem", "downsample", "stochastic_depth", "zero_init_last_scale", "scan_blocks", "remat")
    chosen = {name: model[name] for name in names if model[name]}
    if model.downsample == "stride":  # the default of all that can be told otherwise; not all can
        del chosen["downsample"]
    own = own_norm(model.name)
    own = own if norm.name in (None, own["name"]) else {"name": norm.name}
    epsilon = {"epsilon": norm.epsilon or own.get("epsilon", 1e-5)}
    norms = {"batch": {"momentum": norm.momentum} | epsilon, "group": {"groups": norm.groups} | epsilon, "none": {}}
    if "norm" in attributes_of(model.name):
        chosen["norm"] = {**own, **norms[own["name"]]}
    return chosen
