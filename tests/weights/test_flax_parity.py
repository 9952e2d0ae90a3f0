"""Nets as Flax's ImageNet example and big_vision define them, written down from their definitions in Linen."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util

from resnet_jax import UserError, load_pretrained
from resnet_jax.weights.pretrained import read_pretrained

KEY = jax.random.key(0)
STAGE_SIZES = (1, 2)  # of the nets that are compared; the second stage strides


class ExampleBlock(nn.Module):
    """A block of the Flax example: paddings are Linen's "SAME"."""

    filters: int
    strides: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True, momentum=0.9, epsilon=1e-5)
        conv = functools.partial(nn.Conv, use_bias=False)
        out, residual = self.filters * (4 if self.bottleneck else 1), x
        if self.bottleneck:
            y = nn.relu(norm(name="BatchNorm_0")(conv(self.filters, (1, 1), name="Conv_0")(x)))
            y = conv(self.filters, (3, 3), (self.strides,) * 2, name="Conv_1")(y)
            y = norm(name="BatchNorm_2")(conv(out, (1, 1), name="Conv_2")(nn.relu(norm(name="BatchNorm_1")(y))))
        else:
            y = nn.relu(norm(name="BatchNorm_0")(conv(out, (3, 3), (self.strides,) * 2, name="Conv_0")(x)))
            y = norm(name="BatchNorm_1")(conv(out, (3, 3), name="Conv_1")(y))
        if residual.shape != y.shape:
            residual = norm(name="norm_proj")(conv(out, (1, 1), (self.strides,) * 2, name="conv_proj")(residual))
        return nn.relu(residual + y)


class ExampleNet(nn.Module):
    """The net of the Flax example."""

    bottleneck: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], use_bias=False, name="conv_init")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, momentum=0.9, epsilon=1e-5, name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        number, block = 0, "BottleneckResNetBlock" if self.bottleneck else "ResNetBlock"
        for stage, blocks in enumerate(STAGE_SIZES):
            for index in range(blocks):
                strides = 2 if stage and not index else 1
                x = ExampleBlock(64 * 2**stage, strides, self.bottleneck, name=f"{block}_{number}")(x)
                number += 1
        return nn.Dense(5, name="Dense_0")(x.mean((1, 2)))


class DeviationConv(nn.Module):
    """A convolution of big_vision's models/bit.py: kernel minus its mean, by its deviation plus 1e-5; "SAME"."""

    features: int
    kernel: int
    strides: int = 1

    @nn.compact
    def __call__(self, x):
        w = self.param("kernel", nn.initializers.lecun_normal(), (self.kernel,) * 2 + (x.shape[-1], self.features))
        w = w - w.mean((0, 1, 2), keepdims=True)
        w = w / (w.std((0, 1, 2), keepdims=True) + 1e-5)
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (self.strides,) * 2, "SAME", dimension_numbers=dimensions)


class BigVisionUnit(nn.Module):
    """A block of big_vision's models/bit.py; norms have Linen's small number, 1e-6."""

    width: int
    strides: int

    @nn.compact
    def __call__(self, x):
        residual = x
        if self.strides != 1 or x.shape[-1] != 4 * self.width:
            residual = DeviationConv(4 * self.width, 1, self.strides, name="conv_proj")(x)
            residual = nn.GroupNorm(name="gn_proj")(residual)
        y = nn.relu(nn.GroupNorm(name="gn1")(DeviationConv(self.width, 1, name="conv1")(x)))
        y = nn.relu(nn.GroupNorm(name="gn2")(DeviationConv(self.width, 3, self.strides, name="conv2")(y)))
        return nn.relu(residual + nn.GroupNorm(name="gn3")(DeviationConv(4 * self.width, 1, name="conv3")(y)))


class BigVisionStage(nn.Module):
    width: int
    units: int
    strides: int

    @nn.compact
    def __call__(self, x):
        for index in range(self.units):
            x = BigVisionUnit(self.width, self.strides if index == 0 else 1, name=f"unit{index + 1}")(x)
        return x


class BigVisionNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.GroupNorm(name="gn_root")(DeviationConv(64, 7, 2, name="conv_root")(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, units in enumerate(STAGE_SIZES):
            x = BigVisionStage(64 * 2**stage, units, 2 if stage else 1, name=f"block{stage + 1}")(x)
        return nn.Dense(5, name="head")(x.mean((1, 2)))


def with_random_values(net, images):
    """Variables whose norms' scales and statistics are random, too."""
    rng = np.random.default_rng(0)
    low = {"scale": 0.5, "var": 0.5, "bias": -0.5, "mean": -0.5}

    def value(path, x):
        name = path[-1].key
        return np.asarray(x) if name == "kernel" else rng.uniform(low[name], low[name] + 1, x.shape).astype(np.float32)

    return jax.tree.map_with_path(value, dict(jax.jit(net.init)(KEY, images)))


def assert_same_logits(net, variables, loaded, images):
    expected = np.asarray(jax.jit(net.apply)(variables, images))
    ours = jax.jit(functools.partial(loaded.model.apply, train=False))(loaded.variables, images)
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("size", [(64, 64), (65, 71)])
@pytest.mark.parametrize(("name", "bottleneck"), [("flax_resnet18", False), ("flax_resnet50", True)])
def test_the_flax_examples_nets_are_ours_in_its_two_kinds_of_checkpoints(name, bottleneck, size, tmp_path):
    images = jax.random.normal(KEY, (2, *size, 3))
    net = ExampleNet(bottleneck)
    variables = with_random_values(net, images)
    state = {**variables, "step": np.int32(7), "opt_state": {"0": {"trace": variables["params"]}}}
    (tmp_path / "checkpoint_7").write_bytes(serialization.msgpack_serialize(state))
    loaded = read_pretrained(name, tmp_path / "checkpoint_7", stage_sizes=STAGE_SIZES)
    assert_same_logits(net, variables, loaded, images)


def test_the_nets_of_big_vision_are_ours(tmp_path):
    images = jax.random.normal(KEY, (2, 64, 70, 3))
    net = BigVisionNet()
    variables = with_random_values(net, images)
    flat = traverse_util.flatten_dict(variables, sep="/")
    for prefix in ("params/", "opt/target/", ""):
        arrays = {prefix + name.removeprefix("params/"): array for name, array in flat.items()}
        np.savez(tmp_path / "bit.npz", **arrays)
        loaded = read_pretrained("big_vision_resnet50", tmp_path / "bit.npz", stage_sizes=STAGE_SIZES)
        assert_same_logits(net, variables, loaded, images)


def test_weights_of_one_library_are_refused_in_the_nets_of_another(tmp_path):
    variables = with_random_values(ExampleNet(True), jnp.zeros((1, 64, 64, 3)))
    (tmp_path / "checkpoint_1").write_bytes(serialization.msgpack_serialize(variables))
    with pytest.raises(UserError, match="found resnet50: its paddings.*try flax_resnet50"):
        load_pretrained("resnet50", tmp_path / "checkpoint_1")
