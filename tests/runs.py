"""Helpers for tests of whole runs."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.checkpoint import SavedSteps, read_step
from resnet_jax.config.build import make_recipe, resolve
from resnet_jax.config.transfer import initial_weights
from resnet_jax.training.accumulator import StepTimer
from resnet_jax.training.logs import read_metrics

ROOT = pathlib.Path(__file__).parent.parent
# The rate rises until it spoils what was learnt, so that the best weights are not the last.
RATE = {"optim__schedule": "linear", "optim__lr": 0.3, "optim__end_lr": 3.0, "optim__clip_norm": 1.0}
SETTINGS = {"train__ema_decay": 0.9, "augment__pad_crop": 1, "train__steps": 60, **RATE}
EVERY_STEPS = ("loss", "accuracy", "top5", "learning_rate")


def logged(workdir, names=EVERY_STEPS):
    lines = read_metrics(workdir / "metrics.jsonl")
    return [[line["split"], line["step"], *(line.get(name) for name in names)] for line in lines]


def last_state(workdir):
    """Every array of the last checkpoint."""
    saved = SavedSteps(workdir)
    return read_step(saved.path(saved.resolve("latest")), ("model", "optimizer"))[0]


def assert_the_same_end(workdir, reference):
    assert logged(workdir) == logged(reference)
    jax.tree.map(np.testing.assert_array_equal, last_state(workdir), last_state(reference))


def rewrite_manifest(step_folder, **changes):
    """Change values of the manifest of a step, and its digest with them."""
    file = step_folder / "manifest.json"
    values = {**json.loads(file.read_text()), **changes}
    del values["digest"]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    file.write_text(json.dumps({**values, "digest": digest}, sort_keys=True, separators=(",", ":")))


def at_step(monkeypatch, acts):
    """Do something, by number, when the loop has handed so many calls to the device."""
    timed, calls = StepTimer.add, []

    def counting(self, *arguments):
        timed(self, *arguments)
        calls.append(1)
        acts.get(len(calls), bool)()

    monkeypatch.setattr(StepTimer, "add", counting)


def stop_after(monkeypatch, step):
    """Send Ctrl-C when the loop has handed `step` calls to the device."""
    at_step(monkeypatch, {step: lambda: os.kill(os.getpid(), signal.SIGINT)})


def start_process(workdir, cache=None, **settings):
    arguments = [f"{key}={value!r}" for key, value in settings.items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **({"XDG_CACHE_HOME": str(cache)} if cache else {})}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tiny", str(workdir), *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_of(config):
    """The weights that a run would begin with."""
    recipe = make_recipe(resolve(config))
    own = recipe.model.init(jax.random.key(0), jnp.zeros((1, *recipe.image_shape)), train=False)["params"]
    return initial_weights(recipe, own)
