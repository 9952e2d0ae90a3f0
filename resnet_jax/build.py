"""From a config to the parts of a run: models, steps and loaders get plain arguments and never see a config."""

import functools
import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from resnet_jax.data import device, stream
from resnet_jax.data.archives import is_archive
from resnet_jax.data.augment import augment_colours, augment_images, mix_images, normalize
from resnet_jax.data.crops import EVALUATION_VIEWS, VIEWS
from resnet_jax.data.facts import DATASETS
from resnet_jax.data.order import Feed, steps_for_epochs
from resnet_jax.data.sources import dataset_facts, load_splits, open_splits
from resnet_jax.errors import UserError
from resnet_jax.metrics import add_sums
from resnet_jax.models import attributes_of, create_model
from resnet_jax.models.layers import NORMS
from resnet_jax.models.profile import Layer, profile
from resnet_jax.models.resnet import ResNet
from resnet_jax.optim import make_optimizer, make_schedule
from resnet_jax.parallel import DataParallel
from resnet_jax.step import TrainState, create_state, make_eval_step, make_train_step
from resnet_jax.validate import check_config, check_data, check_devices, check_warmup


def build_model(config: ml_collections.ConfigDict, **batch_norm_settings) -> ResNet:
    """The model of a config, its batch norms (if any) with other settings than the config's on demand.

    Without an axis, batch statistics are those of the images that the model is called with.
    """
    settings = ("shortcut", "stem", "downsample", "stochastic_depth", "zero_init_last_scale")
    chosen = {key: config.model[key] for key in settings if config.model[key]}
    if config.model.downsample == "stride":  # what all do that are not told otherwise; not all can be told
        del chosen["downsample"]
    norm_settings = {
        "batch": {"momentum": config.norm.momentum, "epsilon": config.norm.epsilon, **batch_norm_settings},
        "group": {"groups": config.norm.groups, "epsilon": config.norm.epsilon},
        "none": {},
    }
    if "norm" in attributes_of(config.model.name):
        chosen["norm"] = functools.partial(NORMS[config.norm.name], **norm_settings[config.norm.name])
    return create_model(
        config.model.name,
        num_classes=config.model.num_classes or dataset_facts(config.data.name, config.data.data_dir).num_classes,
        dtype=jnp.dtype(config.precision),
        **chosen,
    )


def build_data(config: ml_collections.ConfigDict) -> tuple[dict, functools.partial]:
    """The splits, and the function that makes model input of images of 0..255 (traceable).

    Splits are uint8 examples on the host; those of the stream are sources, read one example at a time.
    """
    data = config.data
    facts = dataset_facts(data.name, data.data_dir)
    mean, std = np.float32([[[facts.mean]]]), np.float32([[[facts.std]]])
    if is_archive(data.name):  # the stream gives images of the size of a step, or of evaluation
        splits = open_splits(data.name, data.validation_size, data.data_dir)
        return splits, functools.partial(normalize, mean=mean, std=std)
    load = load_splits if data.loader == "device" else open_splits
    splits = load(data.name, data.validation_size, data.data_dir)
    if data.normalization == "pixel_mean":
        mean = np.float32(splits["train"].images.mean(axis=0, keepdims=True, dtype=np.float64) / 255)
        std = np.float32(1)
    return splits, functools.partial(normalize, mean=mean, std=std, size=data.image_size)


def image_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """(height, width, channels) of what the model sees."""
    size = config.data.image_size
    if is_archive(config.data.name):
        return (size, size, 3)
    height, width, channels = DATASETS[config.data.name].image_shape
    return (size, size, channels) if size else (height, width, channels)


def _cached_on_instance(method):
    # functools.cache on a method would keep every run, with its data and programs, for as long as the process lives.
    @functools.wraps(method)
    def cached(self, argument):
        key = (method.__name__, argument)
        if key not in self._cache:
            self._cache[key] = method(self, argument)
        return self._cache[key]

    return cached


class Run:
    """The parts of a run, put together from a config.

    Attributes:
      config: as given; for data that stay on disk with their full path, and their number of classes, so that
        checkpoints can be read where they are not.
      facts: of the data set.
      image_shape: (height, width, channels) of the model's input.
      splits: by name; see `build_data`.
      model, schedule, parallel: see `models`, `optim` and `parallel`.
      peak_lr: after scaling with the batch.
      num_steps, warmup_steps: in steps.
      eval_steps: after which the validation split is scored and a checkpoint saved.
      state_shapes: shapes and dtypes of a TrainState.

    Raises:
      UserError: a config that cannot run, or data that are missing. Nothing is compiled before.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        check_config(config)
        check_devices(config, jax.device_count(), jax.process_count())
        self._cache = {}
        self.facts = dataset_facts(config.data.name, config.data.data_dir)
        check_data(config, self.facts)
        if is_archive(config.data.name):
            config = config.copy_and_resolve_references()
            config.model.num_classes = self.facts.num_classes
            if config.data.data_dir is not None:
                config.data.data_dir = str(pathlib.Path(config.data.data_dir).expanduser().absolute())
        self.config = config
        self.image_shape = image_shape(config)
        self.parallel = DataParallel(jax.devices()[: config.parallel.devices], config.parallel.wrapper)
        axis = self.parallel.batch_statistics_axis(config.norm.scope, config.norm.group_size)
        self.model = build_model(config, **axis)
        variable_shapes(self.model, self.image_shape)  # refuses images that the model cannot take
        self.splits, self._prepare = build_data(config)

        steps = functools.partial(
            steps_for_epochs, num_examples=len(self.splits["train"]), batch_size=config.train.batch_size
        )
        self.num_steps = config.train.steps or steps(config.train.epochs)
        every = config.eval.every_epochs
        evaluations = math.ceil(self.epoch(self.num_steps) / every)
        self.eval_steps = {steps(count * every) for count in range(1, evaluations)} | {self.num_steps}
        self.warmup_steps = config.optim.warmup_steps or steps(config.optim.warmup_epochs)
        check_warmup(config, self.warmup_steps, self.num_steps)
        scale = config.train.batch_size / 256 if config.optim.lr_scaling == "linear" else 1.0
        self.peak_lr = config.optim.lr * scale
        self.schedule = self._build_schedule(self.peak_lr)
        self.order_key, self._init_key, step_key = jax.random.split(jax.random.key(config.seed), 3)
        self._step_key_data = np.asarray(jax.random.key_data(step_key))
        # Refuses a weight decay mask that matches nothing.
        self.state_shapes = jax.eval_shape(self._create_state, self._init_key)

    def close(self) -> None:
        """Stop reading training batches ahead."""
        if "train_loader" in self.__dict__:
            self.train_loader.close()

    def _build_schedule(self, peak_lr):
        optim = self.config.optim
        return make_schedule(
            optim.schedule,
            peak_lr,
            self.num_steps,
            warmup_steps=self.warmup_steps,
            warmup_shape=optim.warmup_shape,
            warmup_from=optim.warmup_from,
            end=optim.end_lr,
            milestones=optim.milestones,
            factor=optim.factor,
            power=optim.power,
            peak_at=optim.peak_at,
        )

    def _build_optimizer(self, peak_lr):
        optim = self.config.optim
        return make_optimizer(
            optim.name,
            self._build_schedule(peak_lr),
            momentum=optim.momentum,
            nesterov=optim.nesterov,
            b1=optim.b1,
            b2=optim.b2,
            weight_decay=optim.weight_decay,
            weight_decay_mode=optim.weight_decay_mode,
            weight_decay_params=optim.weight_decay_params,
            clip_norm=optim.clip_norm,
        )

    def learning_rate(self, step: int) -> float:
        """The rate of the update that follows `step` updates."""
        return float(self._jitted_schedule(step))

    @functools.cached_property
    def _jitted_schedule(self):
        return jax.jit(self.schedule)

    def epoch(self, step: int) -> float:
        """Epochs seen after `step` steps."""
        return step * self.config.train.batch_size / len(self.splits["train"])

    def is_eval_step(self, step: int) -> bool:
        """Evaluate and save after this step?"""
        return step in self.eval_steps

    def is_log_step(self, step: int) -> bool:
        """Write training metrics after this step?"""
        return step % self.config.log.every_steps == 0 or self.is_eval_step(step)

    def steps_in_dispatch(self, step: int) -> int:
        """How many steps the next program does: `steps_per_dispatch` if nothing is due before its end, or one.

        A function of the step alone, so that a resumed run uses the same programs as an uninterrupted one.
        """
        count = self.config.train.steps_per_dispatch
        inside = range(step + 1, step + count)
        fits = step % count == 0 and step + count <= self.num_steps and not any(map(self.is_log_step, inside))
        return count if fits else 1

    @property
    def num_parameters(self) -> int:
        """Trainable weights."""
        return sum(p.size for p in jax.tree.leaves(self.state_shapes.params))

    def initial_state(self) -> TrainState:
        """The state at step 0, on every device."""
        return self.parallel.replicate(jax.jit(self._create_state)(self._init_key))

    def _create_state(self, key: jax.Array) -> TrainState:
        images = jnp.zeros((1, *self.image_shape))
        with_ema = self.config.train.ema_decay > 0
        return create_state(self.model, self._build_optimizer(self.peak_lr), key, images, with_ema)

    def feed(self, step: int) -> Feed:
        """What the compiled steps take besides the state, for the steps from `step` on.

        Whatever differs between seeds and learning rates is in here and not in the program, which they share.
        """
        shared, batch = self.train_loader.feed(step)
        return Feed({**shared, **self.own_feed}, batch)

    @property
    def own_feed(self) -> dict[str, np.ndarray]:
        """The part of a feed that is this run's own, and the same for every step."""
        return {"key": self._step_key_data, "peak_lr": np.float32(self.peak_lr)}

    @functools.cached_property
    def train_loader(self) -> device.TrainLoader | stream.TrainLoader:
        """Batches of the training split."""
        train, source = self.config.train, self.splits["train"]
        if self.config.data.loader == "device":
            put = self.parallel.replicate
            return device.TrainLoader(source, self.order_key, train.batch_size, train.steps_per_dispatch, put)
        config, augment = self.config, self.config.augment
        view = functools.partial(VIEWS[augment.view], area=augment.area, short_sides=augment.short_sides)
        examples = stream.TrainExamples(
            source,
            stream.EpochOrder(self.order_key, len(source)),
            tuple(np.asarray(jax.random.key_data(self.order_key)).tolist()),
            train.batch_size,
            augment.repeats,
            view,
            functools.partial(
                _shape_at, sizes=tuple(augment.sizes), num_steps=self.num_steps, otherwise=stream_shape(config)
            ),
        )
        return stream.TrainLoader(examples, self.parallel.rows(train.batch_size), **self._streaming)

    @_cached_on_instance
    def eval_loader(self, split: str) -> device.EvalLoader | stream.EvalLoader:
        """Batches of a split for evaluation."""
        shards, source, config = self.parallel.shards, self.splits[split], self.config
        batch_size = -(-min(config.eval.batch_size, len(source)) // shards) * shards
        if config.data.loader == "device":
            return device.EvalLoader(source, batch_size, self.parallel.replicate)
        examples = evaluation_examples(config, source, batch_size)
        return stream.EvalLoader(examples, self.parallel.rows(batch_size), **self._streaming)

    @property
    def _streaming(self):
        workers = stream.Workers(self.config.data.workers, self.config.data.num_workers)
        return {"put": self.parallel.distribute, "workers": workers}

    @_cached_on_instance
    def train_steps(self, count: int) -> Callable:
        """The compiled function `(state, feed) -> (state, sums)` that does `count` steps; sums are (count,) each."""
        return self.parallel.compile(self.uncompiled_steps(count), donate=True)

    def uncompiled_steps(self, count: int) -> Callable:
        """What `train_steps` compiles: the work of one device (traced)."""
        config = self.config

        def one_step(state, feed, ahead):
            step = make_train_step(
                self.model,
                self._build_optimizer(feed.shared["peak_lr"]),
                loss=config.train.loss,
                label_smoothing=config.train.label_smoothing,
                bce_threshold=config.train.bce_threshold,
                microbatches=config.train.microbatches,
                ema_decay=config.train.ema_decay,
                mean=self.parallel.mean,
                sum=self.parallel.sum,
            )
            return step(state, *self.train_batch(feed, ahead, state.step))

        def steps(state, feed):
            if count == 1:  # no loop: XLA's CPU backend runs convolutions in loops several times slower
                state, sums = one_step(state, feed, 0)
                return state, jax.tree.map(lambda x: x[None], sums)
            return jax.lax.scan(lambda state, ahead: one_step(state, feed, ahead), state, jnp.arange(count))

        return steps

    def train_batch(self, feed: Feed, ahead: int | jax.Array, step: jax.Array) -> tuple[dict, jax.Array]:
        """This device's part of an augmented batch, with `image` and `target`, and its key (traced)."""
        shard = self.parallel.shard()
        loader = {"device": device, "stream": stream}[self.config.data.loader]
        batch = loader.train_batch(feed, self.config.train.batch_size, ahead, shard, self.parallel.shards)
        step_key = jax.random.fold_in(jax.random.wrap_key_data(feed.shared["key"]), step)
        augment_key, mix_key = jax.random.split(step_key)
        augment = self.config.augment
        images = augment_colours(jax.random.fold_in(step_key, 3), batch["image"], batch["position"], augment)
        images = augment_images(augment_key, self._prepare(images), batch["position"], augment)
        targets = jax.nn.one_hot(batch["label"], self.facts.num_classes)
        images, targets = mix_images(mix_key, images, targets, batch["position"], augment)
        batch = {**batch, "image": images, "target": targets}
        return batch, jax.random.fold_in(jax.random.fold_in(step_key, 2), shard)

    @_cached_on_instance
    def eval_step(self, split: str) -> Callable:
        """The compiled function `(variables, feed) -> sums` for one batch of a split."""
        loader, parallel = self.eval_loader(split), self.parallel
        step = make_eval_step(self.model, sum=parallel.sum)

        def one_batch(variables, feed):
            batch = loader.batch(feed, parallel.shard(), parallel.shards)
            targets = jax.nn.one_hot(batch["label"], self.facts.num_classes)
            return step(variables, {**batch, "image": self._prepare(batch["image"]), "target": targets})

        return parallel.compile(one_batch)

    def evaluate(self, variables: dict, split: str) -> dict[str, np.ndarray]:
        """The sums of `make_eval_step` over a split, every example exactly once.

        Raises:
          UserError: too many damaged images.
        """
        total, loader, step = None, self.eval_loader(split), self.eval_step(split)
        for feed in loader.feeds():
            total = add_sums(total, step(variables, feed))
        if total["count"] != loader.num_examples:
            raise RuntimeError(f"evaluated {total['count']} of the {loader.num_examples} examples of {split}")
        stream.check_damaged(total["damaged"], loader.num_examples, self.config.data.max_damaged)
        return total

    def check_training_images(self, damaged: float, first: int, last: int) -> None:
        """Stop if too many images of the steps from `first` to before `last` were damaged, in the mean of their epochs.

        `damaged` counts over all hosts, so that all stop together. An epoch counts as a whole once it has begun, since
        its damage may lie anywhere in it.

        Raises:
          UserError: they were.
        """
        num_examples, repeats = len(self.splits["train"]), self.config.augment.repeats
        distinct = self.config.train.batch_size // repeats
        epochs = math.ceil(last * distinct / num_examples) - first * distinct // num_examples
        stream.check_damaged(damaged, epochs * num_examples * repeats, self.config.data.max_damaged)

    @functools.cached_property
    def layers(self) -> list[Layer]:
        """What each layer costs, in the order of the forward pass."""
        return profile(build_model(self.config), self.image_shape)


def stream_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """(height, width, channels) of the images that the stream gives; those stored in one size are resized later."""
    return image_shape(config) if is_archive(config.data.name) else DATASETS[config.data.name].image_shape


def evaluation_examples(config: ml_collections.ConfigDict, source, batch_size: int) -> stream.EvalExamples:
    """What the stream makes of a split for evaluation."""
    height, width, channels = stream_shape(config)
    size = config.eval.image_size
    blank = np.zeros((size or height, size or width, channels), np.uint8)
    return stream.EvalExamples(source, evaluation_views(config), blank, batch_size)


def evaluation_views(config: ml_collections.ConfigDict, view: str = "center") -> Callable:
    """The function that makes uint8 views of an image, a list, for evaluation: `view` of `crops.EVALUATION_VIEWS`.

    Raises:
      UserError: another view than "center" of images of a fixed size, which are taken as they are.
    """
    if not is_archive(config.data.name):
        if view != "center":
            raise UserError(f"--view: the images of {config.data.name} are taken whole; expected center, found {view}")
        return functools.partial(_whole, stream_shape(config))
    return functools.partial(
        EVALUATION_VIEWS[view],
        size=config.eval.image_size or config.data.image_size,
        crop_fraction=config.eval.crop_fraction,
        interpolation=config.eval.interpolation,
    )


def _whole(shape: tuple[int, int, int], image: np.ndarray) -> list[np.ndarray]:
    if image.shape != shape:
        raise UserError(f"data: expected images of {shape}, as the run had them, found one of {image.shape}")
    return [image]


def _shape_at(step: int, *, sizes: tuple, num_steps: int, otherwise: tuple[int, int, int]) -> tuple[int, int, int]:
    begun = [(size, size, otherwise[2]) for start, size in sizes if start * num_steps <= step]
    return begun[-1] if begun else otherwise


def variable_shapes(model: ResNet, shape: tuple[int, int, int]) -> dict:
    """Shapes and dtypes of a model's variables for images of `shape` (h, w, c); nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
