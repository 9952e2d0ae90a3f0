import contextlib
import pathlib
import random
import re
import shutil

import jax
import numpy as np
import optax
import pytest

from resnet_jax import UserError, create_model
from resnet_jax.checkpoint import Checkpoints, CorruptCheckpoint, SavedSteps, read_step, unflatten
from resnet_jax.errors import DivergedError
from resnet_jax.training.optim import make_optimizer
from resnet_jax.training.run import checkpoint_items
from resnet_jax.training.step import TrainState, create_state
from resnet_jax.workdir import StorageError
from tests import tiny  # noqa: F401  (registers the tiny net)


def make_state(step, model="tiny", **settings) -> TrainState:
    net = create_model(model, num_classes=10, **settings)
    optimizer, key = make_optimizer("adamw", 0.1, optax.constant_schedule), jax.random.key(step)
    state = create_state(net, optimizer, key, key, np.zeros((1, 8, 8, 1), np.float32), with_ema=True)
    return state.replace(step=np.int32(step))


def items_of(step, **settings):
    return checkpoint_items(make_state(step, **settings))


def restored(checkpoints, like=None):
    """The trees of the newest whole checkpoint, its notes and the messages."""
    _, trees, notes = checkpoints.restore_latest(items_of(0) if like is None else like)
    return trees, notes, checkpoints.messages


def read_model(checkpoints, step):
    return unflatten(items_of(0)["model"], read_step(checkpoints.path(step), ("model",))[0]["model"], step)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def open_checkpoints(workdir, **settings):
    return Checkpoints(workdir, **{"keep": 2, "best_metric": "accuracy", **settings})


def fill(workdir, metrics, **settings):
    with open_checkpoints(workdir, **settings) as checkpoints:
        for step, values in enumerate(metrics, start=1):
            checkpoints.save(step, items_of(step), metrics=values, notes={"step": step, "x": 0.1})
            checkpoints.wait()
        return checkpoints.steps()


def scores(*accuracies):
    return [{"accuracy": accuracy, "loss": 10.0 - i} for i, accuracy in enumerate(accuracies)]


def test_a_state_comes_back_bit_for_bit_with_its_notes(tmp_path):
    fill(tmp_path, scores(0.5))
    with open_checkpoints(tmp_path) as checkpoints:
        trees, notes, messages = restored(checkpoints)
    assert_same(trees, items_of(1))
    assert (notes, messages) == ({"step": 1, "x": 0.1}, [])


def test_there_is_nothing_to_restore_in_a_new_folder(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(items_of(0)) is None


def test_several_runs_save_at_once(tmp_path):
    items = items_of(1)
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(open_checkpoints(tmp_path / str(index))) for index in range(3)]
        for step in range(1, 6):
            for run in runs:
                run.save(step, items, metrics=None, notes={})
    for run in runs:
        assert_same(read_model(run, 5), items["model"])


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    assert fill(tmp_path, scores(0.1, 0.9, 0.3, 0.9, 0.2, 0.3)) == [4, 5, 6]  # equal to 2, but of lower loss
    resolved = [SavedSteps(tmp_path).resolve(name) for name in ("best", "latest", 5, "5")]
    assert resolved == [4, 6, 5, 5]


def test_the_best_by_a_loss_is_the_lowest(tmp_path):
    assert fill(tmp_path, [{"loss": x} for x in (3.0, 1.0, 2.0, 4.0)], best_metric="loss") == [2, 3, 4]


def test_without_metrics_the_best_is_the_latest(tmp_path):
    assert fill(tmp_path, [None, None, None]) == [2, 3]
    assert SavedSteps(tmp_path).resolve("best") == 3


@pytest.mark.parametrize("step", ["bset", 7, "-1"])
def test_a_step_that_is_not_there_is_refused_with_those_that_are(tmp_path, step):
    fill(tmp_path, scores(0.5, 0.6))
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=r"one of \[1, 2\], found"):
        checkpoints.resolve(step)


def test_what_is_saved_does_not_change_when_the_device_memory_is_used_again(tmp_path):
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(items_of(1)), metrics=None, notes={})
        state = jax.device_put(items_of(2))
        checkpoints.wait()
        checkpoints.save(2, state, metrics=None, notes={})
        overwrite(state)
        checkpoints.wait()
        trees, _, messages = restored(checkpoints)
    assert messages == []
    assert_same(trees, items_of(2))


def test_a_flipped_bit_is_never_restored(tmp_path):
    fill(tmp_path, scores(0.5))
    model, rng, refused = items_of(1)["model"], random.Random(0), 0
    files = [f for f in (tmp_path / "checkpoints/1/model").rglob("*") if f.is_file() and f.stat().st_size > 1000]
    for _ in range(40):
        file = rng.choice(files)
        original = file.read_bytes()
        corrupt = bytearray(original)
        corrupt[rng.randrange(len(corrupt))] ^= 1 << rng.randrange(8)
        file.write_bytes(corrupt)
        try:
            found = read_model(SavedSteps(tmp_path), 1)
        except CorruptCheckpoint:
            refused += 1
        else:  # the bit meant nothing
            assert_same(found, model)
        file.write_bytes(original)
    assert refused > 10


def test_changed_notes_are_never_restored(tmp_path):
    fill(tmp_path, scores(0.5))
    file = tmp_path / "checkpoints/1/manifest.json"
    file.write_text(file.read_text().replace("0.1", "0.3"))
    with pytest.raises(UserError, match="manifest.json does not match the digest(?s:.*)no whole checkpoint is left"):
        open_checkpoints(tmp_path)


def test_a_corrupt_checkpoint_is_set_aside_and_the_one_before_it_used(tmp_path):
    fill(tmp_path, scores(0.5, 0.6))
    for file in (tmp_path / "checkpoints/2/model").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="is corrupt: its model/.* does not match"):
        read_model(SavedSteps(tmp_path), 2)
    with open_checkpoints(tmp_path) as checkpoints:
        trees, _, messages = restored(checkpoints)
        assert_same(trees, items_of(1))
        assert "moved to checkpoints_corrupt/" in messages[0]
        checkpoints.save(2, items_of(2), metrics=None, notes={})
        checkpoints.wait()
        assert_same(restored(checkpoints)[0], items_of(2))
    assert (tmp_path / "checkpoints_corrupt/2").is_dir()


def test_a_stray_folder_does_not_become_the_latest_step(tmp_path):
    fill(tmp_path, scores(0.5))
    (tmp_path / "checkpoints/99").mkdir()
    with pytest.warns(UserWarning, match="99 cannot be read: it has no manifest.json; it is left out"):
        assert SavedSteps(tmp_path).resolve("latest") == 1
    with open_checkpoints(tmp_path) as checkpoints:
        assert_same(restored(checkpoints)[0], items_of(1))
        checkpoints.save(2, items_of(2), metrics=None, notes={})  # Orbax would skip it, below 99
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


def test_a_checkpoint_of_another_model_is_refused_with_both_sides(tmp_path):
    fill(tmp_path, scores(0.5))
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(UserError) as error:
        restored(checkpoints, items_of(0, width=8))
    assert "batch_stats.bn1.mean: expected float32 (8,), found float32 (4,)" in str(error.value)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="no checkpoint yet"):
        checkpoints.resolve("best")
    assert pathlib.Path(tmp_path / "checkpoints").is_dir()


def test_any_name_of_a_folder_works(tmp_path):
    workdir = tmp_path / "a[1] * ?" / "run[x]"
    fill(workdir, scores(0.5, 0.6))
    assert_same(read_model(SavedSteps(workdir), 2), items_of(2)["model"])
    with open_checkpoints(workdir) as checkpoints:
        assert_same(restored(checkpoints)[0], items_of(2))


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("item", ["model", "optimizer"])
def test_a_number_that_is_not_finite_is_never_saved(tmp_path, item, number):
    items = items_of(1)
    paths, structure = jax.tree_util.tree_flatten_with_path(items[item])
    for chosen, (path, _) in enumerate(paths):
        leaves = [np.array(leaf) for _, leaf in paths]
        if leaves[chosen].dtype != np.float32:
            continue
        leaves[chosen].flat[-1] = number
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        broken = {**items, item: jax.tree_util.tree_unflatten(structure, leaves)}
        with (
            pytest.raises(DivergedError, match=f"{item} {name} is not finite after step 7"),
            open_checkpoints(tmp_path) as c,
        ):
            c.save(7, broken, metrics=None, notes={})
    assert SavedSteps(tmp_path).steps() == []


def test_a_flipped_bit_beside_the_arrays_is_never_believed_and_is_no_traceback(tmp_path):
    fill(tmp_path, scores(0.5))
    file, rng = tmp_path / "checkpoints/1/manifest.json", random.Random(0)
    original = file.read_bytes()
    for _ in range(300):
        corrupt = bytearray(original)
        corrupt[rng.randrange(len(corrupt))] ^= 1 << rng.randrange(8)
        file.write_bytes(corrupt)
        assert SavedSteps(tmp_path).steps() == []


def test_metrics_that_were_changed_make_no_other_step_the_best(tmp_path):
    fill(tmp_path, scores(0.9, 0.6))
    file = tmp_path / "checkpoints/2/manifest.json"
    file.write_text(file.read_text().replace("0.6", "0.95"))
    with pytest.warns(UserWarning, match="2 is corrupt: its manifest.json does not match .*; it is left out"):
        assert SavedSteps(tmp_path).resolve("best") == 1
    with pytest.raises(CorruptCheckpoint, match="2 is corrupt"):
        SavedSteps(tmp_path).resolve(2)
    with open_checkpoints(tmp_path) as checkpoints:
        assert "2 is corrupt: its manifest.json does not match" in checkpoints.messages[0]


def test_without_any_whole_step_nothing_starts_and_nothing_is_moved(tmp_path):
    fill(tmp_path, scores(0.5, 0.6))
    for step in (1, 2):
        (tmp_path / "checkpoints" / str(step) / "manifest.json").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match="2 cannot be read: it has no manifest.json\nno whole checkpoint is left"):
            open_checkpoints(tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}


def test_arrays_that_are_all_corrupt_are_not_moved_either(tmp_path):
    fill(tmp_path, scores(0.5))
    for file in (tmp_path / "checkpoints/1/model").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    for _ in range(2):
        with open_checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="no whole checkpoint is left"):
            checkpoints.restore_latest(items_of(0))


@pytest.mark.parametrize("file", ["manifest.json", "model/manifest.ocdbt", "model"])
def test_what_may_not_be_read_is_named_and_left_alone(tmp_path, file, as_nobody):
    fill(tmp_path, scores(0.5, 0.6))
    hidden = tmp_path / "checkpoints/2" / file
    mode = hidden.stat().st_mode
    hidden.chmod(0)
    with as_nobody(tmp_path), pytest.raises(UserError, match=f"{hidden}.* cannot be read: Permission denied; nothing"):
        open_checkpoints(tmp_path).restore_latest(items_of(0))
    hidden.chmod(mode)
    assert SavedSteps(tmp_path).steps() == [1, 2]


def test_a_step_copied_to_another_number_is_no_step(tmp_path):
    fill(tmp_path, scores(0.5, 0.6))
    shutil.copytree(tmp_path / "checkpoints/1", tmp_path / "checkpoints/9")
    with pytest.warns(UserWarning, match="9 holds step 1, so it is a copy; it is left out"):
        assert SavedSteps(tmp_path).resolve("latest") == 2
    with open_checkpoints(tmp_path) as checkpoints:
        assert "9 holds step 1, so it is a copy; it was moved to" in checkpoints.messages[0]
        assert_same(restored(checkpoints)[0], items_of(2))
        checkpoints.save(3, items_of(3), metrics=None, notes={})
    assert SavedSteps(tmp_path).steps() == [2, 3]


def test_a_full_disk_is_one_error_and_leaves_the_steps_before(small_disk):
    workdir = small_disk(1_000_000) / "run"
    fill(workdir, scores(0.5))
    with open_checkpoints(workdir) as checkpoints, pytest.raises(StorageError) as stopped:
        (workdir / "filling").write_bytes(bytes(shutil.disk_usage(workdir).free - 20_000))
        checkpoints.save(2, items_of(2), metrics=None, notes={})
        checkpoints.wait()
    assert re.search(
        r"No space left on device for a checkpoint of 0.[0-9] MB \(0.0 MB are free\). Make room, then continue: the "
        r"same command with --workdir=.*; whole checkpoints: 1",
        str(stopped.value),
    )
    assert SavedSteps(workdir).steps() == [1]


def test_a_disk_that_fills_while_a_step_is_written_is_one_error_too(small_disk, capfd):
    workdir = small_disk(1_000_000) / "run"
    fill(workdir, scores(0.5))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(items_of(2)))
    with (
        pytest.raises(StorageError, match="No space left on device.*; whole checkpoints: 1"),
        open_checkpoints(workdir) as c,
    ):
        (workdir / "filling").write_bytes(bytes(shutil.disk_usage(workdir).free - size - 5_000))
        c.save(2, items_of(2), metrics=None, notes={})
    assert "Traceback" not in capfd.readouterr().err
    assert SavedSteps(workdir).steps() == [1]


def test_scores_of_a_step_that_is_saved_replace_nothing_but_its_manifest(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, items_of(5), metrics=None, notes={"evaluated": False})
    folder = tmp_path / "checkpoints/5"
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, items_of(5), metrics=scores(0.5)[0], notes={"evaluated": True})
        checkpoints.wait()
        trees, notes, _ = restored(checkpoints)
        assert_same(trees, items_of(5))
        assert notes == {"evaluated": True} and checkpoints.best() == 5
    after = {path: path.stat().st_ino for path in folder.rglob("*")}
    assert before.keys() == after.keys()
    assert {path.name for path in before if before[path] != after[path]} == {"manifest.json"}


def test_a_step_that_could_not_be_published_is_kept_in_mind(tmp_path):
    def fail():
        raise StorageError("no network")

    with open_checkpoints(tmp_path, after_save=fail) as checkpoints:
        for step, accuracy in ((1, 0.9), (2, 0.1)):
            checkpoints.save(step, items_of(step), metrics=scores(accuracy)[0], notes={})
            with pytest.raises(StorageError, match="no network"):
                checkpoints.wait()
        assert checkpoints.steps() == [1, 2] and checkpoints.best() == 1
