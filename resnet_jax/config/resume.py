"""The start of a run: with random weights, with those of another run, or where its last checkpoint left it."""

from shlex import quote

import jax
import jax.numpy as jnp
from rich.console import Console

from resnet_jax.checkpoint import Checkpoints
from resnet_jax.config.recipe import Recipe
from resnet_jax.config.stored import LENGTH, read_config
from resnet_jax.config.transfer import initial_weights
from resnet_jax.data.splits import check_same_data
from resnet_jax.errors import UserError
from resnet_jax.training.processes import read_by_main
from resnet_jax.training.run import checkpoint_items, state_of_items
from resnet_jax.training.step import TrainState


def start_or_resume(
    recipe: Recipe, state: TrainState, checkpoints: Checkpoints | None, assembly, changed: dict, console: Console
) -> tuple[TrainState, int, dict]:
    """State, step and notes of a run: those of its last checkpoint if there is one, else of its start.

    Args:
      recipe: recipe of the run.
      state: initial state.
      checkpoints: those of the run, in the main process.
      assembly: its devices and its data; see `build.Assembly`.
      changed: keys that changed since it began; see `stored.changes`.
      console: for messages.

    Returns:
      (state on the devices, step, notes of the checkpoint).

    Raises:
      UserError: the run cannot be continued with this config or these data.
    """
    parallel = assembly.parallel
    like = checkpoint_items(state)

    def restore():
        restored = checkpoints.restore_latest(like)
        if restored is None:
            return None, None
        step, trees, notes = restored
        _check_may_continue(recipe, assembly, checkpoints.workdir, step, notes, changed)
        return (step, notes, checkpoints.messages), trees

    restored, trees = read_by_main(restore, like)
    if restored is None:
        return parallel.replicate(_with_given_weights(recipe, state, console)), 0, {"sums": None, "seconds": 0.0}
    step, notes, messages = restored
    news = [f"changed: {key} from {old!r} to {new!r}" for key, (old, new) in changed.items()]
    for message in (*messages, *news, f"resuming from step {step} of {recipe.num_steps}"):
        console.print(message, highlight=False, markup=False, soft_wrap=True)
    return parallel.replicate(state_of_items(state, trees, step)), step, notes


def _with_given_weights(recipe, state, console) -> TrainState:
    if recipe.config.init_from is None:
        return state
    weights, words = initial_weights(recipe, jax.device_get(state.params))
    console.print(words, highlight=False, markup=False, soft_wrap=True)
    # A copy, since the state's memory is donated and no array may be in it twice.
    ema = None if state.ema is None else jax.tree.map(jnp.copy, weights)
    return state.replace(**weights, ema=ema)


def _check_may_continue(recipe, assembly, workdir, step, notes, changed) -> None:
    if "data" in notes:
        check_same_data(assembly.data, notes["data"], "to train on these, take another --workdir")
    elif "data.data_dir" in changed:  # a run of an earlier version, which kept no digest
        raise UserError(f"data.data_dir: expected {changed['data.data_dir'][0]}, as in {workdir}, found another folder")
    if changed.keys() & set(LENGTH):
        folder = workdir / "checkpoints" / str(step)
        before = Recipe(read_config(workdir), recipe.info)
        rates = [jax.jit(jax.vmap(each.schedule))(jnp.arange(step)) for each in (before, recipe)]
        shapes = [[shape for shape in each.train_shapes if shape[0] < step] for each in (before, recipe)]
        if step > recipe.num_steps or not bool((rates[0] == rates[1]).all()) or shapes[0] != shapes[1]:
            raise UserError(
                f"train.epochs, train.steps: the run in {workdir} has come to step {step} of {before.num_steps}, and "
                f"with {recipe.num_steps} the learning rates or image sizes up to there would be others; take a "
                "schedule that stays (constant, or step with milestones at the same steps); or begin a new run with "
                f"its weights: another --workdir, and --config.init_from={quote(str(folder))}"
            )
