import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import create_model
from resnet_jax.models import NORMS, SHORTCUTS
from resnet_jax.models.conv import conv2d
from resnet_jax.models.profile import profile, totals
from resnet_jax.models.shortcuts import zero_pad_shortcut
from tests.models.nets import KEY, count, params_of, shapes_of


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_the_plain_twin_of_an_option_a_net_has_the_very_same_parameters(depth):
    assert params_of(f"resnet{depth}") == params_of(f"plain{depth}")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet164", "preact_resnet18", "preact_resnet110"])
def test_without_shortcut_any_net_has_the_parameters_of_option_a(name):
    plain, residual = (params_of(name, shortcut=shortcut, stage_sizes=(2, 2, 1)) for shortcut in ("none", "A"))
    assert plain == residual


def test_a_plain_twin_computes_something_else():
    images = jax.random.normal(KEY, (2, 32, 32, 3))
    variables = create_model("resnet20", num_classes=10).init(KEY, images, train=False)
    outputs = [create_model(n, num_classes=10).apply(variables, images, train=False) for n in ("resnet20", "plain20")]
    assert not np.allclose(*outputs)


@pytest.mark.parametrize(
    ("name", "shortcut", "norm"),
    list(itertools.product(["resnet20", "preact_resnet164"], SHORTCUTS, NORMS)),
)
def test_shortcuts_and_norms_combine_in_bfloat16_and_the_profile_counts_all_their_parameters(name, shortcut, norm):
    norm = {"name": "group", "groups": 8} if norm == "group" else norm
    model = create_model(name, num_classes=10, shortcut=shortcut, norm=norm, stage_sizes=(2, 2), dtype=jnp.bfloat16)
    variables = shapes_of(model, 32)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert totals(profile(model, (32, 32, 3)))[0] == count(variables["params"])
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    _, activations = jax.eval_shape(functools.partial(model.apply, train=False, features=True), variables, images)
    assert [activations[key].dtype for key in ("stem", "stage1", "stage2", "logits")] == [jnp.bfloat16] * 3 + [
        jnp.float32
    ]


@pytest.mark.parametrize(("shortcut", "projections"), [("none", 0), ("A", 0), ("B", 3), ("C", 8)])
def test_shortcut_options_project_where_the_paper_says(shortcut, projections):
    params = shapes_of(create_model("resnet18", num_classes=10, shortcut=shortcut), 64)["params"]
    assert sum("downsample_conv" in block for block in params.values()) == projections


def test_option_a_takes_every_second_pixel_and_pads_with_zero_channels():
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype(np.float32)
    branch = np.random.default_rng(1).normal(size=(2, 3, 3, 8)).astype(np.float32)
    expected = branch.copy()
    for row in range(3):
        for column in range(3):
            expected[:, row, column, :3] += x[:, 2 * row, 2 * column]
    np.testing.assert_array_equal(sum(zero_pad_shortcut(x, branch, stride=2, conv=None, norm=None)), expected)


def test_skipinit_blocks_begin_as_the_relu_of_their_input():
    images = jax.random.normal(KEY, (2, 8, 8, 3))
    model = create_model("resnet20", num_classes=10, stage_sizes=(1, 1), shortcut="skipinit")
    variables = jax.jit(model.init, static_argnames="train")(KEY, images, train=False)
    _, activations = model.apply(variables, images, train=False, features=True)
    np.testing.assert_array_equal(activations["stage1"], activations["stem"])
    np.testing.assert_array_equal(activations["stage2"][..., :16], activations["stem"][:, ::2, ::2])
    assert not activations["stage2"][..., 16:].any()


class Shortcut(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x, branch):
        conv = functools.partial(conv2d, dtype=x.dtype)
        return SHORTCUTS[self.kind](x, branch, stride=x.shape[1] // branch.shape[1], conv=conv, norm=None)


def test_highway_mixes_input_and_branch_by_a_gate_that_begins_almost_shut():
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
    branch = np.random.default_rng(1).normal(size=(2, 3, 3, 5)).astype(np.float32)
    highway = Shortcut("highway")
    gate = jax.device_get(highway.init(KEY, x, branch)["params"]["gate"])
    np.testing.assert_array_equal(gate["bias"], np.full(5, -6.0, np.float32))  # He 2016, Table 1
    carried = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, 2)))

    def addends(bias):
        return highway.apply({"params": {"gate": {**gate, "bias": np.full(5, bias, np.float32)}}}, x, branch)

    g = 1 / (1 + np.exp(-(x[:, ::2, ::2] @ gate["kernel"][0, 0] + 0.5)))
    skip, gated = addends(0.5)
    np.testing.assert_allclose(skip, (1 - g) * carried, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gated, g * branch, rtol=1e-5, atol=1e-6)
    shut, opened = addends(-1e4), addends(1e4)
    np.testing.assert_array_equal(sum(shut), carried)
    np.testing.assert_array_equal(sum(opened), branch)


def test_an_almost_shut_gate_is_not_rounded_in_bfloat16():
    x = jax.random.uniform(KEY, (1, 100, 100, 1), jnp.bfloat16, 1, 2)
    params = {"gate": {"kernel": jnp.zeros((1, 1, 1, 1)), "bias": jnp.full((1,), -6.0)}}
    skip, branch = Shortcut("highway").apply({"params": params}, x, x)
    assert skip.dtype == branch.dtype == jnp.bfloat16
    passed = np.asarray(skip, np.float64).sum() / np.asarray(x, np.float64).sum()
    assert passed == pytest.approx(1 - 1 / (1 + np.exp(6)), abs=1e-3)  # a gate rounded to bfloat16 leaves 0.9948
