"""Plans for TPUs that are not there, by the compiler of libtpu, in processes of their own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent

PLAN = """
import json
import jax
from resnet_jax.config.plan import planned_recipe
from resnet_jax.planning.plan import make_plan
from resnet_jax.planning.topology import find_devices
from tests.tiny import tiny_config

devices = find_devices("v5e:2x2")
recipe = planned_recipe(tiny_config(parallel__devices=None, train__ema_decay=0.9))
plan = make_plan(recipe, devices)
print(json.dumps({
    "devices": [device.device_kind for device in plan.devices],
    "available": plan.available,
    "memory": [plan.train.memory, plan.evaluation.memory],
    "parts": [plan.train.arguments, plan.train.outputs, plan.train.temporaries, plan.train.code],
    "collectives": plan.train.collectives,
    "arrays": sum(leaf.size for leaf in jax.tree.leaves(recipe.variable_shapes)),
    "bounds": plan.bounds,
    "largest": plan.largest,
}))
"""


def run(*command):
    # The quick compilation of the other tests is of CPUs, and so are their four devices.
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_small_net_is_planned_for_four_chips():
    pytest.importorskip("libtpu")
    process = run("-c", PLAN)
    assert process.returncode == 0, process.stderr
    plan = json.loads(process.stdout.splitlines()[-1])
    assert plan["devices"] == ["TPU v5 lite"] * 4 and plan["available"] == 16 * 2**30
    assert all(0 < size < plan["available"] / 100 for size in [*plan["memory"], *plan["parts"]])
    sums = 5  # loss, accuracy, top5, images and corrupt
    assert plan["collectives"] == {"all-reduce": [1, 4 * (plan["arrays"] + sums)]}
    assert plan["bounds"].keys() == {"compute", "memory", "network"} and min(plan["bounds"].values()) > 0
    assert plan["largest"][0] == 1256  # of 1257 digits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "message"),
    [("v5e:3x3", "found 'v5e:3x3'"), ("v9:2x2", "found 'v9:2x2'"), ("tpu", "expected one like v5e:16x16")],
)
def test_a_topology_that_cannot_be_is_one_line(topology, message):
    pytest.importorskip("libtpu")
    process = run("-m", "resnet_jax.doctor", "--topology", topology)
    assert process.returncode == 2 and message in process.stderr
    assert len(process.stderr.splitlines()) == 1 and process.stdout == ""
