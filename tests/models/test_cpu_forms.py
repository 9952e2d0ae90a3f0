"""Convolutions, poolings and batch norms against JAX's and Flax's: values and gradients, at every class of shapes."""

import functools

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from resnet_jax import create_model
from resnet_jax.models.activation import relu
from resnet_jax.models.conv import canonical_gradients, conv2d, convolve
from resnet_jax.models.max_pool import max_pool
from resnet_jax.models.norm import batch_norm, channel_sum

KEY = jax.random.key(0)
# (image, kernel, stride, padding, groups)
CONVOLUTIONS = {
    "pointwise": ((4, 8, 8, 6), (1, 1, 6, 10), 1, 0, 1),
    "strided pointwise, odd sides": ((3, 7, 9, 6), (1, 1, 6, 10), 2, 0, 1),
    "pointwise, padded": ((2, 5, 5, 3), (1, 1, 3, 4), 1, 1, 1),
    "pointwise, groups": ((2, 6, 6, 4), (1, 1, 2, 8), 1, 0, 2),
    "3x3": ((4, 8, 8, 6), (3, 3, 6, 4), 1, 1, 1),
    "strided 3x3, odd sides": ((3, 7, 9, 4), (3, 3, 4, 6), 2, 1, 1),
    "3x3, groups": ((2, 6, 6, 8), (3, 3, 2, 8), 1, 1, 4),
    "3x3, kernel larger than the image": ((2, 4, 5, 12), (3, 3, 12, 10), 1, 1, 1),
    "3x3, all pixels seen": ((4, 2, 2, 6), (3, 3, 6, 4), 1, 1, 1),
    "5x5, all pixels seen": ((3, 3, 2, 4), (5, 5, 4, 6), 1, 2, 1),
    "3x3, padded by 2": ((3, 2, 2, 4), (3, 3, 4, 6), 1, 2, 1),
    "strided pointwise, TensorFlow's padding": ((2, 5, 6, 3), (1, 1, 3, 4), 2, "SAME", 1),
    "3x3, TensorFlow's padding": ((2, 5, 6, 3), (3, 3, 3, 4), 1, "SAME", 1),
    "7x7, 1 channel": ((2, 13, 13, 1), (7, 7, 1, 4), 2, 3, 1),
    "1 image of 1 pixel": ((1, 1, 1, 3), (1, 1, 3, 5), 1, 0, 1),
}
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}


def value_and_gradients(function, *arguments):
    """Of a function of arrays: its value, and the gradients for a cotangent of noise."""
    value, pullback = jax.vjp(function, *arguments)
    return value, pullback(jax.random.normal(jax.random.key(9), value.shape).astype(value.dtype))


def assert_same(found, expected, tolerance):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        other = np.asarray(other, np.float32)
        np.testing.assert_allclose(np.asarray(one, np.float32), other, atol=tolerance * max(np.abs(other).max(), 1))


def on_devices(function, arguments, out_specs, sharded):
    """The function under `shard_map` over four devices; `sharded` says which arguments are."""
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    specs = tuple(PartitionSpec("data") if each else PartitionSpec() for each in sharded)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped)(*arguments)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_that_of_jax(name, dtype):
    image, kernel, stride, padding, groups = CONVOLUTIONS[name]
    x, weights = jax.random.normal(KEY, image, dtype), jax.random.normal(jax.random.key(1), kernel, dtype)
    geometry = ((stride, stride), padding if isinstance(padding, str) else ((padding, padding),) * 2)
    settings = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}
    plain, ours = (
        jax.jit(lambda x, weights, f=f: value_and_gradients(lambda *xs: f(*xs, *geometry, **settings), x, weights))
        for f in (lax.conv_general_dilated, convolve)
    )
    assert_same(ours(x, weights), plain(x, weights), TOLERANCE[dtype])

    stacked = jnp.stack([x, 2 * x]), jnp.stack([weights, -weights])
    assert_same(jax.vmap(ours)(*stacked), jax.vmap(plain)(*stacked), TOLERANCE[dtype])


def test_a_dilated_convolution_is_that_of_jax():
    x, weights = jax.random.normal(KEY, (2, 9, 9, 3)), jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    settings = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "rhs_dilation": (2, 2)}
    plain, ours = (
        value_and_gradients(lambda *xs, f=f: f(*xs, (1, 1), ((2, 2), (2, 2)), **settings), x, weights)
        for f in (lax.conv_general_dilated, convolve)
    )
    assert_same(ours, plain, 1e-5)


@pytest.mark.parametrize("channels", [2, 24])  # the kernel is smaller than the gradient, and larger
def test_canonical_gradients_of_an_uneven_padding_are_those_of_jax(channels):
    x, weights = jax.random.normal(KEY, (2, 5, 4, channels)), jax.random.normal(jax.random.key(1), (3, 3, channels, 8))
    padding = ((0, 1), (2, 0))

    def convolution(x, weights):
        return lax.conv_general_dilated(x, weights, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    value, pullback = jax.vjp(convolution, x, weights)
    assert_same(canonical_gradients(x, weights, value, padding), pullback(value), 1e-5)


@pytest.mark.parametrize("side, size, stride", [(6, 1, 2), (2, 3, 1), (6, 3, 1)])
def test_a_net_on_four_devices_is_that_of_one(side, size, stride):
    x, weights = jax.random.normal(KEY, (8, side, side, 3)), jax.random.normal(jax.random.key(1), (size, size, 3, 4))
    function = functools.partial(
        convolve,
        strides=(stride, stride),
        padding=((size // 2,) * 2,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

    def loss(weights, x):
        return jnp.sum(max_pool(function(x, weights), 2) ** 2)

    def gradient_everywhere(weights, x):
        return lax.psum(jax.grad(loss)(weights, x), "data")

    found = on_devices(gradient_everywhere, (weights, x), PartitionSpec(), (False, True))
    np.testing.assert_allclose(found, jax.grad(loss)(weights, x), rtol=1e-5)


@pytest.mark.parametrize("side, size", [(4, 1), (2, 3)])
def test_a_convolution_by_a_dot_is_one_on_cpus_alone(side, size):
    x, weights = jnp.ones((2, side, side, 3)), jnp.ones((size, size, 3, 4))
    function = functools.partial(
        convolve, strides=(1, 1), padding=((size // 2,) * 2,) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    step = jax.jit(lambda x, weights: value_and_gradients(function, x, weights)).trace(x, weights)
    for platform, convolutions in (("cpu", 0), ("tpu", 3), ("cuda", 3)):
        assert step.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution") == convolutions


# (image, size, padding)
POOLINGS = {
    "of ResNets": ((4, 12, 12, 5), 3, ((1, 1), (1, 1))),
    "odd sides": ((3, 7, 9, 1), 3, ((1, 1), (1, 1))),
    "one column": ((2, 5, 1, 4), 3, ((1, 1), (1, 1))),
    "TensorFlow's, odd and even": ((2, 11, 8, 3), 3, "SAME"),
    "of VGG nets": ((2, 8, 8, 3), 2, "VALID"),
    "rest at the border": ((2, 9, 7, 3), 2, "VALID"),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", POOLINGS)
def test_a_max_pooling_is_that_of_flax(name, dtype):
    image, size, padding = POOLINGS[name]
    x = jax.random.randint(KEY, image, -2, 3).astype(dtype)  # windows have several maxima

    def plain_pool(x):
        return nn.max_pool(x, (size, size), (2, 2), padding)

    plain, ours = (
        jax.jit(functools.partial(value_and_gradients, f)) for f in (plain_pool, lambda x: max_pool(x, size, padding))
    )
    assert_same(ours(x), plain(x), TOLERANCE[dtype])
    assert_same(jax.vmap(ours)(jnp.stack([x, -x])), jax.vmap(plain)(jnp.stack([x, -x])), TOLERANCE[dtype])


def test_a_max_pooling_selects_and_scatters_but_on_cpus():
    step = jax.jit(functools.partial(value_and_gradients, lambda x: max_pool(x, 2))).trace(jnp.ones((2, 4, 4, 3)))
    for platform, scatters in (("cpu", 0), ("tpu", 1), ("cuda", 1)):
        assert step.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.select_and_scatter") == scatters


def test_a_net_under_a_shard_map_that_checks_types_is_that_of_one_device():
    x, net = jax.random.normal(KEY, (8, 5, 5, 3)), create_model("resnet20", stage_sizes=(1, 1), width=4, num_classes=3)
    variables = net.init(KEY, x, train=False)

    def gradient(train, params, x):
        def loss(params):
            logits, _ = net.apply({**variables, "params": params}, x, train=train, mutable=["batch_stats"])
            return jnp.sum(logits**2)

        return jax.grad(loss)(params)

    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    in_specs, out_specs = (PartitionSpec(), PartitionSpec("data")), PartitionSpec()
    # In training each device has its own batch statistics, and the gradients are summed.
    of_parts = [gradient(True, variables["params"], part) for part in jnp.split(x, 4)]
    of_all = {False: gradient(False, variables["params"], x), True: jax.tree.map(lambda *parts: sum(parts), *of_parts)}
    for train, expected in of_all.items():
        mapped = jax.shard_map(functools.partial(gradient, train), mesh=mesh, in_specs=in_specs, out_specs=out_specs)
        assert_same(jax.jit(mapped)(variables["params"], x), expected, 1e-4)


@pytest.mark.parametrize("side, size, stride", [(6, 1, 2), (2, 3, 1), (6, 3, 1), (3, 3, 1)])
def test_a_convolution_and_a_pooling_of_any_number_of_images_can_be_exported(side, size, stride):
    weights, images = jax.random.normal(KEY, (size, size, 3, 4)), jax.random.normal(KEY, (3, side, side, 3))
    settings = {"padding": ((size // 2,) * 2,) * 2, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def function(x):
        return max_pool(convolve(x, weights, (stride, stride), **settings), 2)

    (batch,) = jax.export.symbolic_shape("batch")
    any_images = jax.ShapeDtypeStruct((batch, *images.shape[1:]), jnp.float32)
    for exportable in (function, jax.grad(lambda x: jnp.sum(jnp.sin(function(x))))):
        exported = jax.export.export(jax.jit(exportable))(any_images)
        assert_same(exported.call(images), exportable(images), 1e-6)


@pytest.mark.parametrize("shape", [(5, 3), (4, 6, 6, 8), (3, 7, 5, 1), (1, 1, 1, 2), (128, 2, 2, 3)])
def test_a_sum_over_channels_is_the_sum(shape):
    x = jax.random.normal(KEY, shape)
    expected = np.asarray(x, np.float64).reshape(-1, shape[-1]).sum(0)
    np.testing.assert_allclose(jax.jit(channel_sum)(x), expected, rtol=1e-5, atol=1e-5)


def norms(dtype, **settings):
    """Flax's batch norm and ours, as modules of a net with nothing else."""

    class Net(nn.Module):
        ours: bool

        @nn.compact
        def __call__(self, x, train):
            if self.ours:
                return batch_norm(name="bn", train=train, dtype=dtype, **settings)(x)
            layer = nn.BatchNorm(momentum=0.9, epsilon=1e-5, dtype=dtype, name="bn", **settings)
            return layer(x, use_running_average=not train)

    return Net(ours=False), Net(ours=True)


def random_norm(channels):
    keys = jax.random.split(jax.random.key(2), 4)
    scale, bias, mean, variance = (jax.random.uniform(key, (channels,), minval=0.5, maxval=2.0) for key in keys)
    return {"params": {"bn": {"scale": scale, "bias": bias}}, "batch_stats": {"bn": {"mean": mean, "var": variance}}}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(8, 6, 6, 5), (3, 7, 5, 1), (6, 4)])
def test_a_batch_norm_is_that_of_flax(shape, dtype, train):
    x = (3 + 2 * jax.random.normal(KEY, shape)).astype(dtype)
    variables = random_norm(shape[-1])

    def everything(net, x, variables):
        def outputs(x, params):
            y, updated = net.apply({**variables, "params": params}, x, train, mutable=["batch_stats"])
            return y, updated["batch_stats"]

        y, pullback, stats = jax.vjp(outputs, x, variables["params"], has_aux=True)
        return (y, stats), pullback(jax.random.normal(jax.random.key(9), y.shape).astype(y.dtype))

    plain, ours = (jax.jit(functools.partial(everything, net)) for net in norms(jnp.dtype(dtype)))
    assert_same(ours(x, variables), plain(x, variables), TOLERANCE[dtype])
    if train:
        stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), (x, variables))
        assert_same(jax.vmap(ours)(*stacked), jax.vmap(plain)(*stacked), TOLERANCE[dtype])


def test_second_derivatives_of_a_batch_norm_are_those_of_flax():
    x, variables = jax.random.normal(KEY, (6, 3, 3, 2)), random_norm(2)

    def penalty(net):
        def loss(x):
            y, _ = net.apply(variables, x, True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y))

        return jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))(x)

    plain, ours = map(penalty, norms(jnp.float32))
    assert_same(ours, plain, 1e-4)


def test_parameters_of_a_batch_norm_are_float32_where_numbers_are_float64():
    with jax.enable_x64(True):
        _, net = norms(jnp.float32)
        variables = net.init(KEY, jnp.ones((2, 3, 3, 4), jnp.float32), False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_relu_is_that_of_jax_but_for_nan():
    x = jnp.float32([-2, -0.0, 0, 3, jnp.inf, -jnp.inf])
    for dtype in ("float32", "bfloat16"):
        found, expected = (value_and_gradients(f, x.astype(dtype)) for f in (relu, jax.nn.relu))
        assert_same(found, expected, 0)
    assert jnp.isnan(relu(jnp.float32(jnp.nan)))


@pytest.mark.parametrize("groups", [None, ((0, 1), (2, 3))])
def test_batch_norms_over_devices_are_those_of_flax(groups):
    x, variables = 3 + jax.random.normal(KEY, (8, 4, 4, 3)), random_norm(3)

    def gradients(net, variables, x):
        def loss(params, x):
            y, _ = net.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y))

        params_gradient, x_gradient = jax.grad(loss, argnums=(0, 1))(variables["params"], x)
        return lax.psum(params_gradient, "data"), x_gradient

    plain, ours = norms(jnp.float32, axis_name="data", axis_index_groups=groups)
    specs = (PartitionSpec(), PartitionSpec("data"))
    expected, found = (
        on_devices(functools.partial(gradients, net), (variables, x), specs, (False, True)) for net in (plain, ours)
    )
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
def test_the_gradient_of_a_net_is_that_of_its_plain_form(name):
    small = {"stage_sizes": (1, 1), "width": 4, "num_classes": 3, "stem": "small"}
    images = jax.random.normal(KEY, (4, 9, 9, 3))

    def gradient(**settings):
        model = create_model(name, **small, **settings)
        variables = model.init(jax.random.key(1), images, train=False)

        def loss(params):
            logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.sum(logits**2)

        return jax.jit(jax.value_and_grad(loss))(variables["params"])

    found = gradient()
    plain_conv = functools.partial(conv2d, conv_general_dilated=lax.conv_general_dilated)
    expected = gradient(conv=plain_conv, norm=flax_batch_norm)
    assert_same(found, expected, 2e-4)


def flax_batch_norm(*, name, train, dtype, scale_init=nn.initializers.ones):
    layer = nn.BatchNorm(momentum=0.9, epsilon=1e-5, dtype=dtype, scale_init=scale_init, name=name)
    return lambda x: layer(x, use_running_average=not train)
