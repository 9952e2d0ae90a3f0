"""The scripts of examples/, run as they are, and what they print and write against other ways to know it."""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from resnet_jax import load_checkpoint, load_data
from resnet_jax.checkpoint import SavedSteps
from resnet_jax.environment import cache_folder
from resnet_jax.evaluation.overlays import overlay
from resnet_jax.weights.trees import flatten
from tests.notebook import CELLS, EXAMPLES, NOTEBOOK, make_notebook

ROOT = EXAMPLES.parent
PAGE = ROOT / "docs" / "scripts.md"
SHORT = """
import resnet_jax


def get_config():
    config = resnet_jax.get_config()
    config.train.epochs = 6.0
    return config
"""
ONE_IMAGE = 1 / 360  # of the test split: what another order of a sum may change


def environment(devices=1):
    """Variables of a user's process, with so many devices, that finds what others have compiled."""
    flags = f"--xla_force_host_platform_device_count={devices}"  # optimised: these programs run long enough
    cache = str(cache_folder() / "xla")
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": cache}


def start(folder, *arguments, devices=1):
    """What a script prints."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment(devices), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """(folder with a short run in runs/digits, what reproduce.py printed when it made it on four devices)."""
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "short.py").write_text(SHORT)
    return folder, start(folder, EXAMPLES / "reproduce.py", "runs/digits", "short.py", devices=4)


@pytest.fixture(scope="module")
def folder(reproduced):
    return reproduced[0]


SCRIPTS = [
    *(["linear_probe"], ["nearest_neighbours"], ["transfer"], ["class_activation"], ["average_weights"]),
    *(["backbone", "runs/digits", mode] for mode in ("frozen", "trained")),
]
RUN = """
import contextlib, io, json, runpy, sys, numpy
from resnet_jax.weights.trees import flatten
examples, scripts = sys.argv[1], json.loads(sys.argv[2])
for name, *arguments in scripts:
    sys.argv = [f"{examples}/{name}.py", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        names = runpy.run_path(sys.argv[0], run_name="__main__")
    title = " ".join([name, *arguments[1:]])
    open(title + ".txt", "w").write(printed.getvalue())
    if name == "backbone":
        numpy.savez(title, **flatten(names["variables"]))
"""


@pytest.fixture(scope="module")
def printed(folder):
    """What each of the SCRIPTS printed, all in one process; the weights of both backbones are in the folder's .npz."""
    start(folder, "-c", RUN, EXAMPLES, json.dumps(SCRIPTS))
    return {path.stem: path.read_text() for path in folder.glob("*.txt")}


@pytest.fixture(scope="module")
def net(folder):
    """(model, variables, images and labels by split) of that run."""
    run = folder / "runs" / "digits"
    return *load_checkpoint(run), {split: load_data(run, split) for split in ("train", "test")}


def accuracies(output):
    return [float(found) / 100 for found in re.findall(r"([\d.]+)%", output)]


def test_every_example_is_on_the_page_in_the_notebook_and_run_here():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {*CELLS, "reproduce"}
    assert set(re.findall(r"\(\.\./examples/(\w+)\.py\)", PAGE.read_text())) == names
    tests = pathlib.Path(__file__).read_text()
    assert [name for name in names if not re.search(rf'"{name}(\.py)?"', tests)] == []


def test_the_code_on_the_page_is_that_of_the_examples():
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    shown = 0
    for section in sections:
        names = re.findall(r"\(\.\./examples/(\w+)\.py\)", section)
        for block in re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL) if names else ():
            shown += 1
            assert block in (EXAMPLES / f"{names[0]}.py").read_text(), f"{names[0]}.py has not this:\n{block}"
    assert shown >= len(CELLS)


@pytest.mark.slow
def test_a_run_is_loaded_and_its_reported_accuracy_found_again(reproduced):
    folder, output = reproduced
    reported = json.loads((folder / "runs" / "digits" / "result.json").read_text())["best"]["test"]["accuracy"]
    assert 0.8 < reported <= 1 and f"reported {reported}, found {reported}" in output
    found = start(folder, EXAMPLES / "reproduce.py", "runs/digits", "short.py", devices=1)
    assert f"reported {reported}, found {reported}" in found and "complete" in found  # on other devices


@pytest.mark.slow
def test_the_linear_probe_is_that_of_the_blocks_outputs(folder, net, printed):
    model, variables, data = net
    found = accuracies(printed["linear_probe"])
    assert len(found) == 4
    apply = jax.jit(functools.partial(model.apply, train=False, capture_intermediates=True))
    for block, accuracy in zip(("stage1_block3", "stage2_block3", "stage3_block3"), found[1:], strict=True):
        features = {}
        for split, (images, _) in data.items():
            _, seen = apply(variables, images)
            features[split] = np.asarray(seen["intermediates"][block]["__call__"][0]).mean((1, 2))
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probe.fit(features["train"], data["train"][1])
        assert abs(probe.score(features["test"], data["test"][1]) - accuracy) <= 1.1 * ONE_IMAGE
    assert found[0] < found[-1]  # deeper features are more linear


@pytest.mark.slow
def test_nearest_neighbours_are_those_of_scikit_learn(folder, net, printed):
    model, variables, data = net
    apply = jax.jit(functools.partial(model.apply, train=False, features=True))
    features = {split: apply(variables, images)[1]["pre_logits"] for split, (images, _) in data.items()}
    truth = KNeighborsClassifier(5, metric="cosine").fit(features["train"], data["train"][1])
    (found,) = accuracies(printed["nearest_neighbours"])
    assert abs(truth.score(features["test"], data["test"][1]) - found) <= 1.1 * ONE_IMAGE


@pytest.mark.slow
def test_transfer_trains_a_new_head_and_nothing_else(folder, net, printed):
    _, before, _ = net
    output = printed["transfer"]
    result = json.loads((folder / "runs" / "parity" / "result.json").read_text())
    accuracy = result["last"]["test"]["accuracy"]
    assert accuracy > 0.8 and f"even or odd: {accuracy:.2%}" in output
    after = flatten(load_checkpoint(folder / "runs" / "parity")[1])
    assert after["params/fc/kernel"].shape == (64, 2)
    for name, array in flatten(before).items():
        if name == "params/conv1/kernel":  # the images are grey, and read as three equal channels
            np.testing.assert_array_equal(after[name], np.repeat(array / 3, 3, axis=2))
        elif not name.startswith("params/fc/"):
            np.testing.assert_array_equal(after[name], array, err_msg=name)


@pytest.mark.slow
def test_the_first_row_of_pictures_is_the_dot_product_with_the_head(folder, net, printed):
    model, variables, _ = net
    output = printed["class_activation"]
    digits = np.uint8(load_digits().images[:8] * (255 / 16))[..., None]
    images = (np.float32(digits) / 255 - 0.3049) / 0.3757
    logits, activations = jax.jit(functools.partial(model.apply, train=False, features=True))(variables, images)
    labels = np.asarray(logits.argmax(axis=1))
    assert output.split()[:8] == [str(label) for label in labels]
    heads = np.asarray(variables["params"]["fc"]["kernel"]).T[labels]
    maps = (np.asarray(activations["stage3"]) * heads[:, None, None]).sum(axis=-1)
    expected = np.hstack([overlay(*pair) for pair in zip(digits, maps, strict=True)]).astype(int)
    picture = np.asarray(Image.open(folder / "runs" / "digits" / "class_activation.png")).astype(int)
    assert picture.shape == (2 * 224, 8 * 224, 3)
    assert abs(picture[:224] - expected).max() <= 3  # neighbouring colours
    assert abs(picture[224:] - expected).max() <= 3  # here Grad-CAM is the same, but for its scale


@pytest.mark.slow
def test_the_average_of_weights_is_the_mean_and_has_statistics_of_its_own(folder, net, printed):
    _, _, data = net
    run = folder / "runs" / "digits"
    output = printed["average_weights"]
    steps = SavedSteps(run).steps()
    assert len(steps) > 1 and re.findall(r"step (\w+):", output) == [*map(str, steps), "averaged"]
    model, averaged = load_checkpoint(run / "averaged.safetensors")
    each = [flatten(load_checkpoint(run, step)[1]["params"]) for step in steps]
    for name, array in flatten(averaged["params"]).items():
        np.testing.assert_allclose(array, np.mean([params[name] for params in each], axis=0), rtol=1e-5, atol=1e-7)
    images, _ = data["train"]
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"], capture_intermediates=True)
    _, seen = jax.jit(apply)(averaged, images)
    outputs = np.asarray(seen["intermediates"]["stage3_block3"]["conv2"]["__call__"][0])
    sets = {"own": averaged["batch_stats"], "loaded": load_checkpoint(run)[1]["batch_stats"]}
    errors = {
        name: abs(statistics["stage3_block3"]["bn2"]["mean"] - outputs.mean((0, 1, 2))).sum()
        for name, statistics in sets.items()
    }
    assert errors["own"] < 0.3 * errors["loaded"], errors
    images, labels = data["test"]
    score = (jax.jit(functools.partial(model.apply, train=False))(averaged, images).argmax(axis=1) == labels).mean()
    assert abs(accuracies(output)[-1] - score) <= 1.1 * ONE_IMAGE


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["frozen", "trained"])
def test_a_backbone_learns_only_if_it_is_not_frozen(folder, net, printed, mode):
    _, loaded, _ = net
    output = printed[f"backbone {mode}"]
    (accuracy,) = accuracies(output)
    assert accuracy > 0.5 and output.startswith(mode)  # the most frequent sum has a tenth
    end = np.load(folder / f"backbone {mode}.npz")
    same = {
        name: np.array_equal(end[name.replace("/", "/backbone/", 1)], array) for name, array in flatten(loaded).items()
    }
    same = {name: equal for name, equal in same.items() if "/fc/" not in name}  # logits are not used
    assert len(same) > 60 and set(same.values()) == {mode == "frozen"}
    assert any(name.startswith("batch_stats/") for name in same)


def test_the_notebook_has_the_code_of_the_examples():
    assert NOTEBOOK.read_text() == make_notebook(), "python -m tests.notebook writes it again"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(folder, printed, tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    shutil.copytree(folder / "runs" / "digits", tmp_path / "runs" / "digits")
    (tmp_path / "examples").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    where = {"metadata": {"path": str(tmp_path / "examples")}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute(env=environment())
    outputs = {cell["id"]: str(cell["outputs"]) for cell in notebook.cells if cell["cell_type"] == "code"}
    assert [name for name in CELLS if not outputs[name]] == []
    assert "image/png" in outputs["class_activation"]
    assert accuracies(outputs["linear_probe"]) == pytest.approx(
        accuracies(printed["linear_probe"]), abs=1.1 * ONE_IMAGE
    )
