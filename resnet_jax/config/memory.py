"""Refusal of a step that does not fit into memory, before it runs: the machine would swap for minutes, or end it."""

import jax

from resnet_jax.config.build import state_shapes
from resnet_jax.config.plan import batch_multiple, planned_program, with_batch
from resnet_jax.config.recipe import Recipe
from resnet_jax.device_memory import largest_batch, memory_needed, memory_of, size_text
from resnet_jax.errors import UserError
from resnet_jax.training.program import Program


def check_memory(recipe: Recipe, program: Program, split: str, compiled: jax.stages.Compiled) -> None:
    """Compare what the compiler plans for a step with what its device has.

    Args:
      recipe: recipe of the run.
      program: compiled functions.
      split: "train" for the training step, else that of an evaluation.
      compiled: the step.

    Raises:
      UserError: it does not fit; the largest batch that should is named.
    """
    available, needed = memory_of(jax.local_devices()[0]), memory_needed(compiled)
    if available is None or needed is None or needed <= available:
        return
    found = f"needs {size_text(needed)} on each device, which has {size_text(available)}"
    if split != "train":
        raise UserError(f"eval.batch_size: a batch of {recipe.config.eval.batch_size} {found}; try a smaller one")
    advice = "a smaller net or image fits; or more devices"
    multiple = batch_multiple(recipe, program.parallel.shards)
    if multiple < recipe.batch_size:
        small = _memory_of_batch(recipe, program, multiple)
        batch = largest_batch(available, (multiple, small), (recipe.batch_size, needed), multiple)
        if batch:
            advice = f"the largest that should fit: --config.train.batch_size={batch}"
    raise UserError(f"train.batch_size: a step with {recipe.batch_size:,} images {found}; {advice}")


def _memory_of_batch(recipe, program, batch) -> int:
    other = planned_program(with_batch(recipe, batch), list(program.parallel.mesh.devices.flat))
    return memory_needed(other.compile_train_steps(1, state_shapes(recipe), other.loader.input_shapes(0)))
