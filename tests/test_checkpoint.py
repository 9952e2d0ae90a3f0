import pathlib
import random

import jax
import numpy as np
import optax
import pytest

from resnet_jax import UserError, create_model
from resnet_jax.checkpoint import Checkpoints, DamagedCheckpoint
from resnet_jax.step import TrainState, create_state
from tests import tiny  # noqa: F401  (registers the tiny net)


def make_state(step, model="tiny", **settings) -> TrainState:
    net = create_model(model, num_classes=10, **settings)
    state = create_state(net, optax.adamw(0.1), jax.random.key(step), np.zeros((1, 8, 8, 1), np.float32), with_ema=True)
    return state.replace(step=np.int32(step))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def open_checkpoints(workdir, **settings):
    return Checkpoints(workdir, **{"keep": 2, "best_metric": "accuracy", **settings})


def fill(workdir, metrics, **settings):
    with open_checkpoints(workdir, **settings) as checkpoints:
        for step, values in enumerate(metrics, start=1):
            checkpoints.save(step, make_state(step), metrics=values, notes={"step": step, "x": 0.1})
            checkpoints.wait()
        return checkpoints.steps()


def scores(*accuracies):
    return [{"accuracy": accuracy, "loss": 10.0 - i} for i, accuracy in enumerate(accuracies)]


def test_a_state_comes_back_bit_for_bit_with_its_notes(tmp_path):
    fill(tmp_path, scores(0.5))
    with open_checkpoints(tmp_path) as checkpoints:
        state, notes, messages = checkpoints.restore_latest(make_state(0))
    assert_same(state, make_state(1))
    assert (notes, messages) == ({"step": 1, "x": 0.1}, [])


def test_there_is_nothing_to_restore_in_a_new_folder(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(make_state(0)) is None


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    assert fill(tmp_path, scores(0.1, 0.9, 0.3, 0.9, 0.2, 0.3)) == [4, 5, 6]  # equal to 2, but of lower loss
    with open_checkpoints(tmp_path, read_only=True) as checkpoints:
        resolved = [checkpoints.resolve(name) for name in ("best", "latest", 5, "5")]
    assert resolved == [4, 6, 5, 5]


def test_the_best_by_a_loss_is_the_lowest(tmp_path):
    assert fill(tmp_path, [{"loss": x} for x in (3.0, 1.0, 2.0, 4.0)], best_metric="loss") == [2, 3, 4]


def test_without_metrics_the_best_is_the_latest(tmp_path):
    assert fill(tmp_path, [None, None, None]) == [2, 3]
    with open_checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.resolve("best") == 3


@pytest.mark.parametrize("step", ["bset", 7, "-1"])
def test_a_step_that_is_not_there_is_refused_with_those_that_are(tmp_path, step):
    fill(tmp_path, scores(0.5, 0.6))
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=r"one of \[1, 2\], found"):
        checkpoints.resolve(step)


def test_what_is_saved_does_not_change_when_the_device_memory_is_used_again(tmp_path):
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(make_state(1)), metrics=None, notes={})
        state = jax.device_put(make_state(2))
        checkpoints.wait()
        checkpoints.save(2, state, metrics=None, notes={})
        overwrite(state)
        checkpoints.wait()
        restored, _, messages = checkpoints.restore_latest(make_state(0))
    assert messages == []
    assert_same(restored, make_state(2))


def test_a_flipped_bit_is_never_restored(tmp_path):
    fill(tmp_path, scores(0.5))
    state, rng, refused = make_state(1), random.Random(0), 0
    files = [f for f in (tmp_path / "checkpoints/1/model").rglob("*") if f.is_file() and f.stat().st_size > 1000]
    for _ in range(40):
        file = rng.choice(files)
        original = file.read_bytes()
        damaged = bytearray(original)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        with open_checkpoints(tmp_path, read_only=True) as checkpoints:
            try:
                variables = checkpoints.read_variables(1, state.variables)
            except DamagedCheckpoint:
                refused += 1
            else:  # the bit meant nothing
                assert_same(variables, {**state.variables, "ema": state.ema})
        file.write_bytes(original)
    assert refused > 10


def test_changed_notes_are_never_restored(tmp_path):
    fill(tmp_path, scores(0.5))
    file = tmp_path / "checkpoints/1/meta/metadata"
    file.write_text(file.read_text().replace("0.1", "0.3"))
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="notes does not match the digest"):
        checkpoints.restore_latest(make_state(0))


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(tmp_path):
    fill(tmp_path, scores(0.5, 0.6))
    for file in (tmp_path / "checkpoints/2/model").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with open_checkpoints(tmp_path, read_only=True) as checkpoints, pytest.raises(UserError, match="cannot be read"):
        checkpoints.read_variables(2, make_state(0).variables)
    with open_checkpoints(tmp_path) as checkpoints:
        state, _, messages = checkpoints.restore_latest(make_state(0))
        assert_same(state, make_state(1))
        assert "moved to checkpoints_damaged/" in messages[0]
        checkpoints.save(2, make_state(2), metrics=None, notes={})
        checkpoints.wait()
        assert_same(checkpoints.restore_latest(make_state(0))[0], make_state(2))
    assert (tmp_path / "checkpoints_damaged/2").is_dir()


def test_a_stray_folder_does_not_become_the_latest_step(tmp_path):
    fill(tmp_path, scores(0.5))
    (tmp_path / "checkpoints/99").mkdir()
    with open_checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.resolve("latest") == 1
    with open_checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore_latest(make_state(0))[0], make_state(1))
        checkpoints.save(2, make_state(2), metrics=None, notes={})  # Orbax would skip it, below 99
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


def test_a_checkpoint_of_another_model_is_refused_with_both_sides(tmp_path):
    fill(tmp_path, scores(0.5))
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore_latest(make_state(0, width=8))
    assert "batch_stats.bn1.mean: expected ((8,), dtype('float32')), found ((4,), dtype('float32'))" in str(error.value)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="found no checkpoints/ in it"):
        open_checkpoints(tmp_path / "nothing", read_only=True)
    assert not (tmp_path / "nothing").exists()
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="no checkpoint yet"):
        checkpoints.resolve("best")
    assert pathlib.Path(tmp_path / "checkpoints").is_dir()
