"""The plan of a run: its train step and evaluation step compiled ahead of time, and what the compiler says of them."""

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Sequence

import jax

from resnet_jax.config.build import state_shapes
from resnet_jax.config.plan import (
    batch_multiple,
    has_loop_over_layers,
    max_batch,
    planned_program,
    step_of_largest_images,
    with_batch,
)
from resnet_jax.config.recipe import Recipe
from resnet_jax.device_memory import memory_of, size_text
from resnet_jax.errors import UserError
from resnet_jax.planning.chips import PEAKS, peak_of, step_bounds
from resnet_jax.planning.hlo import Collective, collectives, main_memory_traffic
from resnet_jax.planning.search import Largest, search_largest
from resnet_jax.training.program import Program

_NOT_SUMMED = {"grad_norm", "param_norm"}  # of the sums that a step returns: each device computes them for itself


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """A compiled step, as one device sees it.

    Attributes:
      batch: global.
      arguments, outputs, temporaries, code: bytes of memory.
      aliased: bytes of outputs that take the place of arguments.
      beside: bytes of what lies on the device meanwhile: other data, and state that the step does not need.
      flop: FLOP of a step.
      traffic: bytes of a step to and from main memory; None where the program cannot be read.
      collectives: by kind; None where the program cannot be read.
      summed: bytes that the devices have to add up.
      seconds: compile time.
    """

    batch: int
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    beside: int
    flop: float
    traffic: float | None
    collectives: dict[str, Collective] | None
    summed: dict[str, int]
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes of memory in all."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code + self.beside


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a run on some devices.

    Attributes:
      recipe: recipe of the run.
      devices: those compiled for.
      available: bytes of memory of each; None if not known.
      train, evaluation: the two steps. If the compiler refuses the batch of the config, those of the largest that fits.
      largest: the largest batch that fits; None where the memory is not known.
    """

    recipe: Recipe
    devices: Sequence[jax.Device]
    available: int | None
    train: StepPlan
    evaluation: StepPlan
    largest: Largest | None

    @property
    def bounds(self) -> dict[str, float]:
        """Images/s of one device, at the most, by what binds it; see `chips.step_bounds`."""
        peak = peak_of(self.devices[0])
        if peak is None:
            return {}
        if self.train.traffic is None:
            return {}
        moved = {kind: found.size for kind, found in self.train.collectives.items()}
        dtype = self.recipe.model_settings["dtype"]
        seconds = step_bounds(peak, dtype, self.train.flop, self.train.traffic, moved, len(self.devices))
        return {name: self.train.batch / len(self.devices) / value for name, value in seconds.items() if value}


class DoesNotFit(Exception):
    """The compiler refused a program.

    Args:
      needed: bytes of memory that it would need, as the compiler says.
    """

    def __init__(self, needed: int):
        super().__init__(needed)
        self.needed = needed


def make_plan(recipe: Recipe, devices: Sequence[jax.Device], watch: Callable[[str], None] = lambda text: None) -> Plan:
    """Compile the steps of a run for devices, and search the largest batch.

    Args:
      recipe: recipe of the run.
      devices: from `topology.find_devices`.
      watch: is told what is being compiled.

    Raises:
      UserError: the config does not fit the devices, or no batch fits.
    """
    program = planned_program(recipe, devices)
    used = list(program.parallel.mesh.devices.flat)
    published = PEAKS.get(used[0].device_kind)
    available = published.memory if published and published.memory else memory_of(used[0])

    @functools.cache
    def train_step(batch: int) -> StepPlan | int:
        """The plan of a batch, or the memory that it needs if the compiler refuses it."""
        watch(f"the train step, batch {batch:,}")
        try:
            return plan_train_step(recipe if batch == recipe.batch_size else with_batch(recipe, batch), devices)
        except DoesNotFit as error:
            return error.needed

    def memory(batch: int) -> int:
        found = train_step(batch)
        return found.memory if isinstance(found, StepPlan) else found

    batch = recipe.batch_size
    memory(batch)
    watch("the evaluation step")
    evaluation = plan_eval_step(recipe, program)
    largest = None
    if available is not None:
        state = tree_bytes(state_shapes(recipe))
        largest = search_largest(memory, available, batch, state, batch_multiple(recipe, len(used)), max_batch(recipe))
    if not isinstance(train_step(batch), StepPlan):
        if not largest or not largest.fits:
            raise UserError(
                f"train.batch_size: a step of {batch:,} images needs {size_text(memory(batch))} on each of {len(used)} "
                f"devices, more than they have, and no smaller batch fits; try more devices, or a smaller net or image"
            )
        batch = largest.fits
    return Plan(recipe, used, available, train_step(batch), evaluation, largest)


def plan_train_step(recipe: Recipe, devices: Sequence[jax.Device]) -> StepPlan:
    """The plan of the train step, at the largest images of the run.

    Raises:
      UserError: the config does not fit the devices.
      DoesNotFit: the compiler refuses it.
    """
    program, state = planned_program(recipe, devices), state_shapes(recipe)
    inputs, shards = program.loader.input_shapes(step_of_largest_images(recipe)), program.parallel.shards
    ahead = program.loader.batches_ahead * tree_bytes(inputs.sharded) // shards
    beside = ahead + tree_bytes([program.loader.eval_input_shapes(split).replicated for split in _evaluated(program)])
    start = time.perf_counter()
    compiled = _compile(lambda: program.compile_train_steps(1, state, inputs))
    seconds = time.perf_counter() - start
    sums = [leaf for name, leaf in compiled.out_info[1].items() if name not in _NOT_SUMMED]
    summed = {
        "gradients": tree_bytes(state.params),
        "statistics": tree_bytes(state.batch_stats),
        "sums": tree_bytes(sums),
    }
    model_flop = 6 * recipe.multiply_adds * recipe.batch_size // shards
    loop = has_loop_over_layers(recipe)
    return _step_plan(compiled, recipe.batch_size, beside, summed, seconds, model_flop if loop else None)


def plan_eval_step(recipe: Recipe, program: Program) -> StepPlan:
    """The plan of the evaluation step of the split with the largest batches.

    Raises:
      UserError: the compiler refuses it.
    """
    loader, state, shards = program.loader, state_shapes(recipe), program.parallel.shards
    split = max(_evaluated(program), key=loader.eval_batch_size)
    inputs = loader.eval_input_shapes(split)
    beside = tree_bytes(state) - tree_bytes(state.variables) + tree_bytes(loader.input_shapes(0).replicated)
    beside += loader.batches_ahead * (tree_bytes(inputs.sharded) + tree_bytes(loader.input_shapes(0).sharded)) // shards
    start = time.perf_counter()
    try:
        compiled = _compile(lambda: program.eval_steps(split).lower(state.variables, inputs).compile())
    except DoesNotFit as error:
        raise UserError(
            f"eval.batch_size: an evaluation step of {loader.eval_batch_size(split):,} images needs "
            f"{size_text(error.needed)} on each device, more than it has; try a smaller one"
        ) from None
    flop = 2 * recipe.multiply_adds * loader.eval_batch_size(split) // shards if has_loop_over_layers(recipe) else None
    return _step_plan(compiled, loader.eval_batch_size(split), beside, {}, time.perf_counter() - start, flop)


def _compile(compile_step: Callable[[], jax.stages.Compiled]) -> jax.stages.Compiled:
    try:
        return compile_step()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"required for [\w ]+ \(([\d.]+)([KMGT])\) exceeds", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not found:
            raise
        raise DoesNotFit(int(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[found[2]])) from None


def _step_plan(compiled, batch, beside, summed, seconds, flop) -> StepPlan:
    memory, program = compiled.memory_analysis(), _text(compiled)
    return StepPlan(
        batch=batch,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        beside=beside,
        flop=flop or compiled.cost_analysis()["flops"],
        traffic=main_memory_traffic(program) if program else None,
        collectives=collectives(program) if program else None,
        summed=summed,
        seconds=seconds,
    )


def _text(compiled: jax.stages.Compiled) -> str | None:
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:  # a program of libtpu that this jaxlib cannot read, as for v5p, batch 32768
        return None


def _evaluated(program: Program) -> list[str]:
    return [split for split in program.loader.splits if split != "train"]


def tree_bytes(tree) -> int:
    """Bytes of arrays, or of what has their shapes."""
    return sum(_leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _leaf_bytes(leaf) -> int:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return leaf.size * leaf.dtype.itemsize
