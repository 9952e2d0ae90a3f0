"""Plans of small runs for the devices that are here; for TPUs see test_tpu.py."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import UserError, get_config
from resnet_jax.config.build import Assembly, initial_state, make_recipe, random_keys, state_shapes
from resnet_jax.config.plan import batch_multiple, planned_program, planned_recipe, with_batch
from resnet_jax.data import stand_in
from resnet_jax.device_memory import machine_memory, memory_needed
from resnet_jax.planning import plan as plans
from resnet_jax.planning.plan import DoesNotFit, make_plan, plan_train_step, tree_bytes
from resnet_jax.planning.tables import check_collectives, plan_table
from tests.tiny import tiny_config

# Of libtpu 0.0.52, for v5e.
REFUSAL = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO \
temporaries (50.00G) exceeds available HBM (15.75G). HLO module: jit_steps.
See https://openxla.org/xla/errors/error_1000 for more details."""


def parameters_and_statistics(recipe):
    return sum(leaf.size for leaf in jax.tree.leaves(recipe.variable_shapes))


def four_devices(**overrides):
    return planned_recipe(tiny_config(parallel__devices=4, **overrides))


STREAM = {"data__name": "synthetic:600:10", "data__loader": "stream", "data__image_size": 8}


@pytest.mark.parametrize("settings", [{}, STREAM], ids=["device", "stream"])
@pytest.mark.parametrize("wrapper", ["shard_map", "pmap"])
def test_devices_exchange_the_gradients_the_statistics_and_the_sums_and_nothing_else(wrapper, settings):
    recipe = four_devices(parallel__wrapper=wrapper, **settings)
    step = plan_train_step(recipe, jax.devices())
    assert step.collectives.keys() == {"all-reduce"}
    sums = 5  # loss, accuracy, top5, images and corrupt
    assert step.collectives["all-reduce"].size == 4 * (parameters_and_statistics(recipe) + sums)
    assert sum(step.summed.values()) == step.collectives["all-reduce"].size
    assert check_collectives(step) == "that is all that is exchanged"


def test_what_is_exchanged_beside_that_is_said():
    step = plan_train_step(four_devices(norm__scope="global"), jax.devices())
    assert check_collectives(step).startswith("MORE is summed")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_program_is_that_of_training(split):
    """With stand-ins for the data the same text is compiled, to the letter, as with the data."""
    config = tiny_config(parallel__devices=2, train__ema_decay=0.9)
    texts = []
    for program in (
        planned_program(planned_recipe(config), jax.devices()),
        Assembly(make_recipe(config)).program(random_keys(0)[0]),
    ):
        state, loader = state_shapes(make_recipe(config)), program.loader
        if split == "train":
            lowered = program.train_steps(1).lower(state, loader.input_shapes(0))
        else:
            lowered = program.eval_steps(split).lower(state.variables, loader.eval_input_shapes(split))
        texts.append(lowered.as_text())
    assert texts[0] == texts[1]


def test_a_step_that_was_compiled_ahead_computes_what_training_does():
    recipe = make_recipe(tiny_config(parallel__devices=2))
    assembly = Assembly(recipe)
    program = assembly.program(random_keys(0)[0])
    compiled = program.compile_train_steps(1, state_shapes(recipe), program.loader.input_shapes(0))
    results = []
    for step in (compiled, program.train_steps(1)):
        state = assembly.parallel.replicate(jax.tree.map(jnp.copy, initial_state(recipe)))
        results.append(step(state, program.inputs(0)))
    chex.assert_trees_all_equal(results[0][0].params, results[1][0].params)
    chex.assert_trees_all_equal(results[0][1], results[1][1])


def test_the_data_of_the_device_loader_count_in_its_memory():
    step = plan_train_step(planned_recipe(tiny_config()), jax.devices())
    images, labels, orders = 1257 * 64, 1257 * 4, 2 * 1257 * 4
    state = tree_bytes(state_shapes(planned_recipe(tiny_config())))
    assert step.arguments == state + images + labels + orders + 8
    assert step.beside == (180 + 360) * (64 + 4) + 8  # validation and test split, with their offsets


def test_imagenet_is_planned_without_its_data():
    config = get_config("imagenet_resnet50")
    recipe = planned_recipe(config)
    assert (recipe.num_examples, recipe.info.num_classes, recipe.info.splits["test"]) == (1_281_167, 1000, 50_000)
    program = planned_program(recipe, jax.devices())
    inputs = program.loader.input_shapes(0).sharded
    assert len(program.loader.splits["train"]) == 1_281_167
    assert inputs["image"].shape == (1024, 224, 224, 3) and inputs["label"].shape == (1024,)
    assert program.loader.eval_input_shapes("test").sharded["image"].shape == (1000, 224, 224, 3)


def test_stand_ins_take_no_memory_for_images():
    splits = stand_in.stand_ins(stand_in.known_info("cifar10"), {"train": 50_000, "validation": 0})
    assert list(splits) == ["train"] and splits["train"].images.shape == (50_000, 32, 32, 3)
    assert (
        splits["train"].images.strides == (0, 0, 0, 0) and np.bincount(splits["train"].labels).tolist() == [5000] * 10
    )


def test_the_flop_of_microbatches_are_those_of_the_whole_batch():
    """XLA counts a loop once; a net without padding would give equal numbers."""
    whole, parts = (plan_train_step(four_devices(train__grad_accum_steps=k), jax.devices()) for k in (1, 4))
    assert whole.flop < parts.flop < 2 * whole.flop


def test_a_batch_must_be_a_multiple_of_devices_microbatches_and_pairs():
    recipe = planned_recipe(tiny_config(train__grad_accum_steps=3, train__batch_size=96, augment__mixup=0.2))
    assert batch_multiple(recipe, 4) == 24
    assert with_batch(recipe, 48).batch_size == 48 and recipe.batch_size == 96


def test_the_plan_of_a_machine_names_the_largest_batch():
    recipe = planned_recipe(tiny_config(parallel__devices=4))
    plan = make_plan(recipe, jax.devices())
    assert plan.available == machine_memory() // 4 and 0 < plan.train.memory < plan.available
    assert plan.largest.fits == 1256 and plan.largest.fails is None
    assert plan.bounds.keys() == {"compute", "memory"}


def test_where_memory_is_short_the_largest_batch_is_found_and_verified(monkeypatch):
    recipe = planned_recipe(tiny_config(parallel__devices=4))
    limit = plan_train_step(with_batch(recipe, 512), jax.devices()).memory
    monkeypatch.setattr(plans, "memory_of", lambda device: limit)
    plan = make_plan(recipe, jax.devices())
    assert 480 <= plan.largest.fits <= 512 + 32 < plan.largest.fails + 32
    for batch, fits in ((plan.largest.fits, True), (plan.largest.fails, False)):
        assert (plan_train_step(with_batch(recipe, batch), jax.devices()).memory <= limit) == fits


def test_a_batch_that_the_compiler_refuses_is_planned_at_the_largest_that_fits(monkeypatch):
    recipe, compile_step = four_devices(eval__batch_size=16), plans._compile
    limit = plan_train_step(with_batch(recipe, 32), jax.devices()).memory

    def refuse(make_compiled):
        compiled = compile_step(make_compiled)
        if memory_needed(compiled) > limit:
            raise DoesNotFit(memory_needed(compiled))
        return compiled

    monkeypatch.setattr(plans, "memory_of", lambda device: limit)
    monkeypatch.setattr(plans, "_compile", refuse)
    plan = make_plan(recipe, jax.devices())
    assert plan.train.batch == plan.largest.fits <= 32 < plan.largest.fails <= 64
    assert "64, DOES NOT FIT" in list(plan_table(plan, "here").columns[1].cells)


def test_the_refusal_of_a_tpu_compiler_names_the_memory_that_is_needed():
    def refuse():
        raise jax.errors.JaxRuntimeError(REFUSAL)

    with pytest.raises(DoesNotFit) as refusal:
        plans._compile(refuse)
    assert refusal.value.needed == int(50.0 * 2**30)


def test_the_default_run_is_planned_with_a_line_for_each_figure(capsys):
    from resnet_jax.commands import make_console, print_whole

    print_whole(make_console(), plan_table(make_plan(planned_recipe(get_config()), jax.devices()), "here"))
    text = capsys.readouterr().out
    for words in ("resnet20 on digits, 4 x cpu", "temporaries", "all-reduce", "at the most", "largest batch", "1,256"):
        assert words in text


def test_a_program_that_cannot_be_read_has_a_plan_without_traffic(monkeypatch):
    def refuse(compiled):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure: async-update instruction should have 1 operands")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", refuse)
    monkeypatch.setattr(plans, "search_largest", lambda *a: None)
    plan = make_plan(four_devices(), jax.devices())
    assert plan.bounds == {} and plan.train.memory > 0
    assert "jaxlib cannot read the program" in list(plan_table(plan, "here").columns[1].cells)


def test_data_that_have_to_be_read_and_are_not_there_are_one_error(tmp_path):
    config = tiny_config(
        data__name="folder", data__loader="stream", data__image_size=8, data__data_dir=str(tmp_path / "x")
    )
    with pytest.raises(UserError, match="found no folder"):
        planned_recipe(config)
