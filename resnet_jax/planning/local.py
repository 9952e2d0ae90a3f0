"""Checks of this machine before a run, each with what to do where it fails."""

import collections
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import ml_collections

from resnet_jax.checkpoint import SavedSteps
from resnet_jax.config.build import resolve, state_shapes
from resnet_jax.config.job import join_job
from resnet_jax.config.plan import checkpoints_kept, data_folder, num_devices, planned_recipe
from resnet_jax.config.recipe import Recipe
from resnet_jax.config.stored import changes, with_old_defaults
from resnet_jax.device_memory import size_text
from resnet_jax.environment import describe_environment, unseen_accelerator, use_compilation_cache
from resnet_jax.errors import UserError
from resnet_jax.planning.plan import make_plan, tree_bytes
from resnet_jax.planning.rates import measure_rates
from resnet_jax.training.parallel import is_main_process
from resnet_jax.training.processes import check_same_everywhere
from resnet_jax.workdir import lock_workdir, read_result


class Check(NamedTuple):
    """One thing that a run needs.

    Attributes:
      name: name of the thing.
      found: in words.
      advice: remedy; None if all is well.
    """

    name: str
    found: str
    advice: str | None = None


def check_machine(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, watch: Callable[[str], None] = lambda text: None
) -> Iterator[Check]:
    """Check devices, versions, hosts, workdir, disk, memory, and the speed of the input.

    Args:
      config: config of a run.
      workdir: run directory; it need not be there.
      watch: is told what takes time.

    Raises:
      UserError: a config that can run nowhere, or whose data are not there.
    """
    use_compilation_cache()  # what is compiled here is the run's
    join_job(config)
    yield _devices(config)
    yield _versions()
    yield from _attempt("hosts", lambda: _hosts(config))
    recipe = planned_recipe(config)
    if is_main_process():  # the others would find it locked
        yield from _attempt("workdir", lambda: _workdir(workdir, with_old_defaults(workdir, resolve(config))))
    yield from _disk(recipe, workdir)
    memory = list(_attempt("memory", lambda: _memory(recipe, watch)))
    yield from memory
    if memory[0].advice is None:
        watch("measuring the input and the step")
        yield from _attempt("input", lambda: _input(recipe))


def _attempt(name: str, check: Callable[[], Check]) -> Iterator[Check]:
    """The check; where it meets a `UserError`, that: its last clause says what to do."""
    try:
        yield check()
    except UserError as error:
        found, _, advice = str(error).rpartition("; ")
        yield Check(name, found or advice, advice)


def _devices(config) -> Check:
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    found = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    used = num_devices(config, jax.device_count())
    if used < jax.device_count():
        return Check("devices", found, f"parallel.devices={used} leaves {jax.device_count() - used} of them idle")
    return Check("devices", found, unseen_accelerator())


def _versions() -> Check:
    versions = describe_environment()
    shown = ("python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    found = ", ".join(f"{name} {versions[name]}" for name in shown)
    revision = versions["git_revision"]
    advice = None
    if versions["jax"] != versions["jaxlib"]:
        advice = f"install the jaxlib of this jax: pip install jaxlib=={versions['jax']}"
    return Check("versions", found + (f", git {revision[:12] + revision[40:]}" if revision else ""), advice)


def _hosts(config) -> Check:
    if jax.process_count() == 1:
        return Check("hosts", "one process")
    own = describe_environment()
    same = {name: value for name, value in own.items() if name not in ("command", "started", "platform", "cpus")}
    check_same_everywhere(json.dumps([same, config.to_json()], sort_keys=True).encode(), "versions, code and config")
    return Check("hosts", f"{jax.process_count()} processes agree in versions, code and config")


def _workdir(workdir, config) -> Check:
    if not workdir.exists():
        parent = _existing(workdir)
        return _writable(parent) or Check("workdir", f"{workdir} is new, and can be made")
    if refusal := _writable(workdir):
        return refusal
    with lock_workdir(workdir):  # refuses what another run is at work in
        changed = changes(workdir, config)
        steps, result = SavedSteps(workdir).steps(), read_result(workdir)
    if not (workdir / "config.json").exists():
        return Check("workdir", f"{workdir} can be written, and holds no run")
    if result and result["completed"] and not changed:
        return Check("workdir", f"{workdir} holds a finished run of this config", "nothing to train; take another")
    saved = f"saved at step {max(steps):,}" if steps else "nothing saved"
    return Check("workdir", f"{workdir} holds a run of this config, {saved}; training continues it")


def _writable(folder) -> Check | None:
    """None if a file can be made in a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return Check("workdir", f"{folder} cannot be written: {error.strerror}", "take another with --workdir=DIR")


def _existing(path: pathlib.Path) -> pathlib.Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _disk(recipe: Recipe, workdir) -> Iterator[Check]:
    size, count = tree_bytes(state_shapes(recipe)), checkpoints_kept(recipe)
    free = shutil.disk_usage(_existing(workdir)).free
    found = f"{size_text(free)} free for {count} checkpoints of {size_text(size)}"
    yield Check("disk", found, None if free > size * count else "make room, or keep fewer: checkpoint.keep")
    folder = data_folder(recipe)
    if folder and folder.exists():
        yield Check("disk of the data", f"{size_text(shutil.disk_usage(folder).free)} free in {folder}")


def _memory(recipe: Recipe, watch) -> Check:
    plan = make_plan(recipe, jax.devices(), lambda text: watch(f"compiling {text}"))
    batch = recipe.batch_size
    largest = f"; the largest batch that fits is {plan.largest.fits:,}" if plan.largest else ""
    refused = plan.train.batch != batch
    needed = max(plan.train.memory, plan.evaluation.memory)
    found = f"a batch of {plan.train.batch:,} needs {size_text(needed)} on each device"
    if plan.available is None:
        return Check("memory", f"{found}; how much there is the device does not say")
    found += f", which has {size_text(plan.available)}{largest}"
    if plan.evaluation.memory > plan.available and plan.train.memory <= plan.available:
        found = f"an evaluation of {plan.evaluation.batch:,} images needs {size_text(needed)} on each device"
        return Check("memory", f"{found}, which has {size_text(plan.available)}", "a smaller eval.batch_size")
    if refused or needed > plan.available:
        advice = f"--config.train.batch_size={plan.largest.fits}" if plan.largest.fits else "a smaller net"
        return Check("memory", found, f"{advice}, or the same batch in parts (train.grad_accum_steps)")
    return Check("memory", found)


def _input(recipe: Recipe) -> Check:
    rates = measure_rates(recipe)
    found = f"{rates.input:,.0f} images/s come in, a step takes {rates.step:,.0f} images/s"
    if rates.input > rates.step:
        return Check("input", found)
    return Check(
        "input", found, "training waits for its input: more CPUs, smaller stored images, or data.workers=processes"
    )
