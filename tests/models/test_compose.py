"""Values that know nothing of each other make one net, without a line for the pair."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import UserError, create_model
from resnet_jax.models import CONVS, DOWNSAMPLES, GATES, NORMS
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.profile import depth, profile, totals
from tests.models.nets import KEY, count, params_of, published_counts, shapes_of
from tests.models.toys import dot_conv, standardized_conv

NEXT = {"groups": 32, "base_width": 4}
DEEP = {"stem": "deep", "shortcut": "D"}
SE = {"gate": "se"}


@pytest.mark.parametrize(
    ("name", "overrides", "published"),
    [
        ("resnet50", NEXT, "resnext50_32x4d"),
        ("resnet101", {"groups": 32, "base_width": 8}, "resnext101_32x8d"),
        ("resnet50", {"base_width": 128}, "wide_resnet50_2"),
        ("resnet18", DEEP, "resnet18d"),
        ("resnet50", DEEP, "resnet50d"),
        ("resnet18", SE, "seresnet18"),
        ("resnet50", SE, "seresnet50"),
        ("resnet50", SE | NEXT, "seresnext50_32x4d"),
        ("resnet50", {"conv": standardized_conv, "downsample": "blur"}, "resnet50"),
        ("resnet50", {"conv": dot_conv, "norm": "group"}, "resnet50_gn"),
        ("vgg11_bn", {"conv": standardized_conv}, "vgg11_bn"),
    ],
)
def test_relatives_that_are_made_of_values_have_the_published_number_of_parameters(name, overrides, published):
    assert count(params_of(name, **overrides)) == published_counts()[published]


@pytest.mark.parametrize(
    ("conv", "norm", "downsample", "gate"),
    list(itertools.product([*CONVS, dot_conv], NORMS, DOWNSAMPLES, [None, *GATES])),
)
def test_any_conv_goes_with_any_norm_downsampling_and_gate(conv, norm, downsample, gate):
    norm = {"name": "group", "groups": 8} if norm == "group" else norm
    overrides = {"conv": conv, "norm": norm, "downsample": downsample, "gate": gate, "stage_sizes": (1, 1)}
    for name, layers in (("resnet164", 8), ("preact_resnet110", 6)):
        model = create_model(name, num_classes=10, shortcut="D", dtype=jnp.bfloat16, **overrides)
        variables = shapes_of(model, 32)
        found = profile(model, (32, 32, 3))
        assert totals(found)[0] == count(variables["params"])
        assert depth(found) == layers
        assert {layer.name.split("/")[-1] for layer in found if not layer.is_on_main_path} >= {"downsample_conv"} | (
            {"se_fc1", "se_fc2"} if gate else set()
        )
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        apply = functools.partial(model.apply, train=False, features=True)
        _, activations = jax.eval_shape(apply, variables, images)
        assert activations["stage2"].dtype == jnp.bfloat16


def rescaled(params):
    """The tree with other scales and means of each output's kernel, the head's excepted."""

    def rescale(path, x):
        return 3 * x + 0.1 if x.ndim == 4 else x

    return jax.tree.map_with_path(rescale, params)


@pytest.mark.parametrize("name", ["resnet164", "preact_resnet164", "vgg11_bn"])
def test_a_conv_that_is_passed_makes_all_convolutions_of_stem_branches_and_projections(name):
    small = {} if name == "vgg11_bn" else {"stage_sizes": (1, 1), "width": 4}
    model = create_model(name, num_classes=10, conv=standardized_conv, **small)
    convolutions = []

    def record(call, args, kwargs, context):
        convolutions.extend([context.module] if isinstance(context.module, nn.Conv) else [])
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes = shapes_of(model, 32)
    assert not convolutions and any(x.ndim == 4 for x in jax.tree.leaves(shapes))
    if small:
        images = jax.random.normal(KEY, (2, 8, 8, 3))
        variables = jax.jit(functools.partial(model.init, train=False))(KEY, images)
        apply = jax.jit(functools.partial(model.apply, train=False))
        other = {**variables, "params": rescaled(variables["params"])}
        np.testing.assert_allclose(apply(other, images), apply(variables, images), rtol=1e-3, atol=1e-3)


def test_a_convolution_by_dot_is_the_convolution():
    images = jax.random.normal(KEY, (2, 8, 8, 3))
    small = {"stage_sizes": (1, 1), "width": 8, "norm": {"name": "group", "groups": 4}}
    models = [create_model("resnet164", num_classes=10, conv=conv, **small) for conv in ("conv2d", dot_conv)]
    variables = models[0].init(KEY, images, train=False)
    expected, found = (model.apply(variables, images, train=False) for model in models)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_gate_ends_the_branch():
    images = jax.random.normal(KEY, (2, 8, 8, 3))
    small = {"stage_sizes": (1,), "width": 4, "shortcut": "C"}
    whole = create_model("resnet20", num_classes=10, **small)
    halved = create_model("resnet20", num_classes=10, gate=lambda branch, *, conv, norm: branch / 2, **small)
    variables = whole.init(KEY, images, train=False)

    def addends(model):
        _, looks = model.apply(variables, images, train=False, mutable=["addends"])
        return [looks["addends"]["stage1_block1"][part][0] for part in ("skip", "branch")]

    (skip, branch), (gated_skip, gated) = addends(whole), addends(halved)
    np.testing.assert_array_equal(gated, branch / 2)
    np.testing.assert_array_equal(gated_skip, skip)


def test_bottleneck_settings_are_refused_in_basic_blocks():
    with pytest.raises(
        UserError, match="expected 1 and 64 in a net of basic blocks, found 32 and 4; try a net of bott"
    ):
        shapes_of(create_model("resnet18", num_classes=10, **NEXT), 64)


def test_a_block_cannot_leave_out_how_it_is_joined():
    for method in ("__call__", "joined"):
        with pytest.raises(TypeError, match=f"expected a block to define `branch` only, found {method} of its own"):
            type("Rogue", (BasicBlock,), {method: lambda self, x: x})
    nn.remat(BasicBlock)  # wraps the very same methods

    class Other(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x

    with pytest.raises(UserError, match="model.block: expected a subclass of models.blocks.Block, found"):
        shapes_of(create_model("resnet20", num_classes=10, block=lambda **_: Other()), 32)


def test_addends_of_different_shapes_are_refused():
    def strided(x, branch, *, stride, conv, norm):
        return x[:, ::2, ::2], branch

    with pytest.raises(AssertionError, match="shape"):
        shapes_of(create_model("resnet20", num_classes=10, shortcut=strided), 32)
