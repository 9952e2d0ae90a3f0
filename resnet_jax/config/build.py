"""From a config to a run at work: the one place where recipe, data, devices and training meet."""

import contextlib
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_collections
from rich.console import Console
from rich.progress import Progress

from resnet_jax.checkpoint import Checkpoints, unflatten
from resnet_jax.config.checks import check_config, check_devices
from resnet_jax.config.recipe import Recipe
from resnet_jax.config.stored import check_same_config
from resnet_jax.data.augment import augment_batch
from resnet_jax.data.crops import VIEWS
from resnet_jax.data.device import DeviceLoader
from resnet_jax.data.info import DATASETS
from resnet_jax.data.preprocessing import mean_image
from resnet_jax.data.splits import dataset_info, load_splits
from resnet_jax.data.stream import StreamLoader
from resnet_jax.environment import describe_environment
from resnet_jax.training.accumulator import Accumulator
from resnet_jax.training.console import TrainingDisplay, start_screen
from resnet_jax.training.hooks import ITEMS, TrainingRun, checkpoint_items
from resnet_jax.training.logs import MetricsLog
from resnet_jax.training.parallel import DataParallel, is_main_process
from resnet_jax.training.program import Program
from resnet_jax.training.step import TrainState, create_state, make_batch_fn, make_eval_step, make_train_step
from resnet_jax.workdir import lock_workdir, read_result, write_json


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A checked copy; data that stay on disk with their full path, so that a run finds them from anywhere."""
    check_config(config)
    config = config.copy_and_resolve_references()
    if config.data.name not in DATASETS and config.data.data_dir is not None:
        config.data.data_dir = str(pathlib.Path(config.data.data_dir).expanduser().absolute())
    return config


def make_recipe(config: ml_collections.ConfigDict) -> Recipe:
    """The recipe of a config; of a dataset that stays on disk the metadata are read.

    Raises:
      UserError: a config that cannot run, or data that are not there.
    """
    return Recipe(config, dataset_info(config.data.name, config.data.data_dir))


def finished_result(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> dict | None:
    """The result of a finished run; None before it is. Needs no data.

    Raises:
      UserError: the workdir belongs to another config.
    """
    check_same_config(workdir, config)
    result = read_result(workdir)
    return result if result and result["completed"] else None


class Assembly:
    """The parts that runs of one program share: devices, data, and the functions that are compiled for them.

    Attributes:
      recipe: recipe of any of the runs.
      parallel: devices.
      splits: datasets by split.
      mean_image: that of the training images if it is subtracted, or None.

    Raises:
      UserError: a config that cannot run on this machine, or data that are not there. Nothing is compiled.
    """

    def __init__(self, recipe: Recipe):
        config = recipe.config
        check_devices(config, jax.device_count(), jax.process_count())
        self.recipe = recipe
        self.parallel = DataParallel(jax.devices()[: config.parallel.devices], config.parallel.wrapper)
        self.splits = load_splits(config.data.name, config.data.validation_size, config.data.data_dir)
        subtracted = config.data.normalization == "pixel_mean"
        self.mean_image = mean_image(self.splits["train"].images) if subtracted else None

    def program(self, order_key: jax.Array) -> Program:
        """The compiled functions, for a key of the order of examples, or (k,) keys of k replicas."""
        recipe, parallel = self.recipe, self.parallel
        model = recipe.create_model(**recipe.batch_statistics_axis(parallel))
        preprocessing = recipe.create_preprocessing(self.mean_image)
        loader = LOADERS[recipe.config.data.loader](recipe, self.splits, parallel, preprocessing, order_key)
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
        )

        def eval_step(split):
            gather = functools.partial(loader.eval_gather, split)
            return make_eval_step(model, gather=gather, normalize=preprocessing.normalize, devices=parallel)

        return Program(train_step, eval_step, batch_of, loader, parallel, vmapped=order_key.ndim > 0)


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
    )


LOADERS = {"device": _device_loader, "stream": _stream_loader}


def _shape_of_step(shapes: Sequence[tuple[int, tuple[int, int, int]]], step: int) -> tuple[int, int, int]:
    return [shape for first_step, shape in shapes if first_step <= step][-1]


def random_keys(seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys of the order of examples, of the initial weights, and of the steps."""
    return tuple(jax.random.split(jax.random.key(seed), 3))


def initial_state(recipe: Recipe) -> TrainState:
    """The state at step 0."""
    _, init_key, key = random_keys(recipe.config.seed)
    images = jnp.zeros((1, *recipe.image_shape))
    with_ema = recipe.config.train.ema_decay > 0
    return jax.jit(functools.partial(create_state, recipe.model, recipe.optimizer, images=images, with_ema=with_ema))(
        init_key, key
    )


@contextlib.contextmanager
def open_run(
    recipe: Recipe, assembly: Assembly, workdir: pathlib.Path, console: Console, bars: Progress | None = None
) -> Iterator[TrainingRun]:
    """A run at its start, or where its last checkpoint left it; its workdir is locked meanwhile.

    Raises:
      UserError: the workdir cannot be used.
    """
    config, main = recipe.config, is_main_process()
    with contextlib.ExitStack() as stack:
        environment, values = describe_environment(), json.loads(config.to_json())
        card = recipe.card({"config": values, "environment": environment}, assembly.mean_image).to_json()
        if main:
            stack.enter_context(lock_workdir(workdir))
            check_same_config(workdir, config)
            for name, content in (("environment", environment), ("config", values), ("card", card)):
                write_json(workdir / f"{name}.json", content)
        keep, best = config.checkpoint.keep, config.checkpoint.best_metric
        checkpoints = stack.enter_context(Checkpoints(workdir, ITEMS, keep, best))
        devices = [device.device_kind for device in assembly.parallel.mesh.devices.flat]
        console.print(start_screen(recipe.describe(devices, workdir)))
        state, step, notes = _start_or_resume(recipe, checkpoints, assembly.parallel, console)
        log = stack.enter_context(MetricsLog(workdir, step, enabled=main, test_curve=recipe.test_curve))
        display = stack.enter_context(TrainingDisplay(console, step, recipe.num_steps, bars))
        accumulator, seconds = Accumulator(notes["sums"]), notes["seconds"]
        yield TrainingRun(recipe, workdir, console, card, checkpoints, log, display, accumulator, seconds, step, state)


def _start_or_resume(recipe, checkpoints, parallel, console):
    state = initial_state(recipe)
    restored = checkpoints.restore_latest(ITEMS)
    if restored is None:
        return parallel.replicate(state), 0, {"sums": None, "seconds": 0.0}
    step, items, notes, messages = restored
    for message in (*messages, f"resuming from step {step} of {recipe.num_steps}"):
        console.print(message, highlight=False, soft_wrap=True)
    path = checkpoints.path(step)
    trees = {name: unflatten(tree, items[name], path) for name, tree in checkpoint_items(state).items()}
    opt_state = state.opt_state._replace(inner_state=trees["optimizer"]["opt_state"], count=trees["optimizer"]["step"])
    state = state.replace(**{**trees["model"], "opt_state": opt_state, "step": trees["optimizer"]["step"]})
    return parallel.replicate(state), step, notes
