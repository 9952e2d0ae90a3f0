"""The end of a run: scores of the last and the best weights, and what is looked at after training."""

import functools

from resnet_jax.errors import InterruptedRun
from resnet_jax.training.parallel import is_main_process
from resnet_jax.training.processes import from_main
from resnet_jax.training.run import StopWatching, TrainingRun
from resnet_jax.training.step import TrainState


def final_result(run: TrainingRun, state: TrainState) -> dict:
    """The content of `result.json`.

    Raises:
      InterruptedRun: asked to stop; when it is resumed, the run is scored.
    """
    recipe = run.recipe
    run.wait_until_saved()
    try:
        with run.interruptible(recipe.num_steps, state):
            found = _final_findings(run, state)
    except StopWatching:
        raise InterruptedRun(from_main(functools.partial(run.stop, recipe.num_steps, state))) from None
    return {"completed": True, **run.progress(recipe.num_steps), **found}


def _final_findings(run: TrainingRun, state: TrainState) -> dict:
    found = _final_scores(run, state)
    for name, probe in run.probes.after_training.items():
        found[name] = probe(state, run.watch)
    return found


def _final_scores(run: TrainingRun, state: TrainState) -> dict[str, dict]:
    """Scores of the last and of the best weights. Nothing was chosen by the test split before."""
    recipe, step = run.recipe, run.recipe.num_steps
    best_step, best = run.read_best(state)
    best_state = state.replace(**run.program.parallel.replicate(best))
    scores = {}
    for scored_step, scored in sorted({step: state, best_step: best_state}.items()):
        run.display.scoring(scored_step)
        scores[scored_step] = {"step": scored_step, "train": run.log.train_scores.get(scored_step)}
        for split in (name for name in run.program.loader.splits if name != "train"):
            scores[scored_step][split], others = run.evaluate(scored, split, scored_step)
        if not recipe.test_curve and is_main_process():  # else the log holds these points already
            values = {**scores[scored_step]["test"], **others}
            run.log.write("test", scored_step, recipe.epoch(scored_step), values)
    return {"last": scores[step], "best": scores[best_step]}
