"""From a config to a run at work: the one place where recipe, data, devices and training meet."""

import functools
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections

from resnet_jax.config.checks import check_config, check_devices
from resnet_jax.config.recipe import Recipe
from resnet_jax.config.runs import is_on_disk
from resnet_jax.config.transfer import normalized_as_weights
from resnet_jax.data.augment import augment_batch
from resnet_jax.data.balance import class_weights, make_order
from resnet_jax.data.crops import VIEWS
from resnet_jax.data.device import DeviceLoader
from resnet_jax.data.info import DATASETS, DatasetInfo
from resnet_jax.data.preprocessing import mean_image
from resnet_jax.data.splits import SPLIT_SETTINGS, dataset_info, fingerprint, load_splits, thinned
from resnet_jax.data.stream import StreamLoader
from resnet_jax.data.verify import verify
from resnet_jax.progress import Watch, unwatched
from resnet_jax.training.nonfinite import skip_nonfinite
from resnet_jax.training.parallel import DataParallel
from resnet_jax.training.processes import agreed, check_same_everywhere
from resnet_jax.training.program import Program
from resnet_jax.training.step import TrainState, create_state, make_batch_fn, make_eval_step, make_train_step
from resnet_jax.workdir import absolute, is_url


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A checked copy; what stays on disk with its full path, so that a run finds it from anywhere."""
    check_config(config)
    config = config.copy_and_resolve_references()
    data_dir = config.data.data_dir
    if config.data.name not in DATASETS and data_dir is not None and not is_url(data_dir):
        config.data.data_dir = str(absolute(data_dir))
    if config.init_from is not None and is_on_disk(config.init_from):
        config.init_from = str(absolute(config.init_from))
    return config


def make_recipe(
    config: ml_collections.ConfigDict, workdir: pathlib.Path | None = None, info: DatasetInfo | None = None
) -> Recipe:
    """The recipe of a config; of a dataset that stays on disk the metadata are read.

    Args:
      config: config of a run.
      workdir: run directory, where the run may have begun; or None.
      info: the metadata, where they are known; else they are read.

    Raises:
      UserError: a config that cannot run, or data that are not there.
    """
    data = config.data
    settings = (data.name, data.data_dir, data.test_size, data.use_validation_split)
    info = info or agreed(functools.partial(dataset_info, *settings), "answer of the data")
    if data.normalization == "weights":
        info = normalized_as_weights(config, info, workdir)
    return Recipe(config, info)


def shared_program(config: ml_collections.ConfigDict) -> str:
    """Equal for configs whose runs can be trained together: those that differ in seed and learning rate alone.

    Runs of the `stream` have each their own: their batches are made on the host, so together they win nothing. So have
    those that may go back to a checkpoint, each at another step.
    """
    values = json.loads(config.to_json())
    if values["data"]["loader"] == "device" and values["train"]["nonfinite"] != "rollback":
        del values["seed"], values["optim"]["lr"]
    return json.dumps(values, sort_keys=True)


_latest: dict[tuple, object] = {}
_MAX_LATEST = 8


def _remembered(key: tuple, make: Callable[[], object]) -> object:
    """The value made for this key, if it is one of the latest: another seed in a process compiles nothing again."""
    if key not in _latest:
        while len(_latest) >= _MAX_LATEST:
            del _latest[next(iter(_latest))]
        _latest[key] = make()
    return _latest[key]


def forget_programs() -> None:
    """Free what is remembered."""
    _latest.clear()


class Assembly:
    """The parts that runs of one program share: devices, data, and the functions that are compiled for them.

    Args:
      recipe: recipe of any of the runs.
      watch: shows how the data are verified; see `progress.watch`.
      devices: those to compile for; default: all of this job.
      splits: datasets by split; default: they are opened.

    Attributes:
      recipe: recipe of any of the runs.
      parallel: devices.
      splits: datasets by split.
      data: their `fingerprint`.
      class_weights: weight of each class in the loss, or None.
      mean_image: that of the training images if it is subtracted, or None.

    Raises:
      UserError: a config that cannot run on this machine, or data that are not there. Nothing is compiled.
    """

    def __init__(
        self,
        recipe: Recipe,
        watch: Watch = unwatched,
        *,
        devices: Sequence[jax.Device] | None = None,
        splits: dict | None = None,
    ):
        config, devices = recipe.config, devices or jax.devices()
        check_devices(config, len(devices), len({device.process_index for device in devices}))
        self.recipe = recipe
        self.parallel = DataParallel(devices[: config.parallel.devices], config.parallel.wrapper)
        splits = splits or agreed(functools.partial(_open_splits, config, watch), "answer of the data")
        self.splits = {**splits}
        self.data = fingerprint(self.splits)
        check_same_everywhere(json.dumps(self.data).encode(), "data")
        for split in self.splits.keys() - {"train"}:
            self.splits[split] = thinned(self.splits[split], config.eval.max_examples)
        recipe.check_batch_statistics(self.parallel.shards)
        self.class_weights = class_weights(
            config.train.class_weights, self.splits["train"].labels, recipe.info.num_classes
        )
        subtracted = config.data.normalization == "pixel_mean"
        self.mean_image = mean_image(self.splits["train"].images) if subtracted else None

    def program(self, order_key: jax.Array) -> Program:
        """The compiled functions, for a key of the order of examples, or (k,) keys of k replicas."""
        recipe = self.recipe
        preprocessing = recipe.create_preprocessing(self.mean_image)
        loader = LOADERS[recipe.config.data.loader](recipe, self.splits, self.parallel, preprocessing, order_key)
        vmapped = order_key.ndim > 0
        make = functools.partial(self._make_program, loader, preprocessing, vmapped)
        if recipe.config.data.loader == "stream":
            return make()
        devices = tuple(self.parallel.mesh.devices.flat)
        key = ("program", shared_program(recipe.config), str(self.data), str(self.mean_image), devices, vmapped)
        return _remembered(key, make).with_loader(loader)

    def _make_program(self, loader, preprocessing, vmapped) -> Program:
        recipe, parallel = self.recipe, self.parallel
        model = recipe.create_model(**recipe.batch_statistics_axis(parallel))
        augment = functools.partial(
            augment_batch,
            settings=recipe.config.augment.to_dict(),
            normalize=preprocessing.normalize,
            num_classes=recipe.info.num_classes,
        )
        batch_of = make_batch_fn(loader.gather, augment, parallel)
        train_step = make_train_step(
            model,
            recipe.optimizer,
            batch_of=batch_of,
            devices=parallel,
            ema_decay=recipe.config.train.ema_decay,
            **recipe.objective,
            class_weights=self.class_weights,
        )
        if recipe.nonfinite == "skip":
            train_step = skip_nonfinite(train_step)

        def eval_step(split):
            gather = functools.partial(loader.eval_gather, split)
            return make_eval_step(model, gather=gather, normalize=preprocessing.normalize, devices=parallel)

        return Program(train_step, eval_step, batch_of, loader, parallel, vmapped=vmapped)


def _open_splits(config, watch) -> dict:
    splits = load_splits(**{name: config.data[name] for name in SPLIT_SETTINGS})
    key = (json.dumps(fingerprint(splits)), config.data.data_dir, config.data.verify)
    if config.data.loader == "stream" and key not in _verified:
        verify(splits, config.data.verify, config.data.max_corrupt, watch)
        _verified.add(key)
    return splits


_verified: set[tuple] = set()  # by this process: the runs of a study share their data


def _device_loader(recipe, splits, parallel, preprocessing, order_key):
    config = recipe.config
    return DeviceLoader(
        splits,
        order_key,
        batch_size=recipe.batch_size,
        eval_batch_size=config.eval.batch_size,
        steps_per_call=config.train.steps_per_call,
        shards=parallel.shards,
        replicate=parallel.replicate,
        order=_order(recipe, splits),
    )


def _stream_loader(recipe, splits, parallel, preprocessing, order_key):
    config, augment = recipe.config, recipe.config.augment
    return StreamLoader(
        splits,
        order_key,
        batch_size=recipe.batch_size,
        eval_batch_size=config.eval.batch_size,
        train_view=functools.partial(
            VIEWS[augment.view], area=tuple(augment.area), short_sides=tuple(augment.short_sides)
        ),
        train_shape=functools.partial(_shape_of_step, recipe.train_shapes),
        eval_view=preprocessing.center_view,
        eval_shape=preprocessing.view_shape,
        repeats=augment.repeats,
        workers=config.data.workers,
        num_workers=config.data.num_workers,
        shards=parallel.shards,
        rows=parallel.rows,
        distribute=parallel.distribute,
        order=_order(recipe, splits),
    )


def _order(recipe, splits):
    train = splits["train"]
    return make_order(train.labels, len(train), recipe.info.num_classes, recipe.config.data.balanced)


LOADERS = {"device": _device_loader, "stream": _stream_loader}


def _shape_of_step(shapes: Sequence[tuple[int, tuple[int, int, int]]], step: int) -> tuple[int, int, int]:
    return [shape for first_step, shape in shapes if first_step <= step][-1]


def random_keys(seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys of the order of examples, of the initial weights, and of the steps."""
    return tuple(jax.random.split(jax.random.key(seed), 3))


def initial_state(recipe: Recipe) -> TrainState:
    """The state at step 0."""
    _, init_key, key = random_keys(recipe.config.seed)
    values = {**json.loads(recipe.config.to_json()), "seed": None}  # the learning rate is in the program
    program = ("state", json.dumps(values, sort_keys=True), recipe.image_shape, recipe.info.num_classes)
    return _remembered(program, functools.partial(_make_initialize, recipe))(init_key, key)


def state_shapes(recipe: Recipe) -> TrainState:
    """Shapes and dtypes of the state."""
    _, init_key, key = random_keys(recipe.config.seed)
    return jax.eval_shape(_make_initialize(recipe), init_key, key)


def _make_initialize(recipe: Recipe) -> Callable:
    images, with_ema = jnp.zeros((1, *recipe.image_shape)), recipe.config.train.ema_decay > 0
    return jax.jit(functools.partial(create_state, recipe.model, recipe.optimizer, images=images, with_ema=with_ema))
