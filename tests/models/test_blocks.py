import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import UserError, create_model
from resnet_jax.models import SHORTCUTS
from resnet_jax.models.blocks import PreActBottleneckBlock
from resnet_jax.models.conv import conv2d
from resnet_jax.models.norm import batch_norm
from tests.models.nets import KEY, shapes_of


def test_blocks_with_a_zero_last_scale_begin_as_the_identity():
    images = jax.random.normal(KEY, (2, 16, 16, 3))
    model = create_model("resnet20", num_classes=10, zero_init_last_scale=True)
    variables = model.init(KEY, images, train=False)
    _, activations = model.apply(variables, images, train=False, features=True)
    np.testing.assert_array_equal(activations["stage1"], activations["stem"])


@pytest.mark.parametrize("zeroed", [{"zero_init_last_scale": True}, {"shortcut": "skipinit"}])
def test_a_preactivation_net_with_zero_branches_hands_the_activated_stem_on_and_can_learn(zeroed):
    images = jax.random.normal(KEY, (2, 8, 8, 3))
    model = create_model("preact_resnet110", num_classes=10, stage_sizes=(2, 1), **zeroed)
    variables = jax.jit(model.init, static_argnames="train")(KEY, images, train=False)
    _, activations = model.apply(variables, images, train=False, features=True)
    np.testing.assert_array_equal(activations["stage1"], activations["stem"])

    def loss(params):
        return (model.apply({**variables, "params": params}, images, train=False) ** 2).sum()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    # One parameter opens the branch; the gradients of the others wait for it.
    opening = ("branch_scale", "scale") if "shortcut" in zeroed else ("conv2", "kernel")
    for block in ("stage1_block1", "stage1_block2", "stage2_block1"):
        assert jnp.abs(gradients[block][opening[0]][opening[1]]).max() > 1e-6, block


def test_a_preactivation_block_of_another_shape_shares_the_activation_and_projects_without_a_norm():
    x = jax.random.normal(KEY, (2, 8, 8, 4))
    norm = functools.partial(batch_norm, train=False, dtype=jnp.float32)
    conv = functools.partial(conv2d, dtype=jnp.float32)
    block = PreActBottleneckBlock(2, 2, SHORTCUTS["B"], conv, norm, side_norm=norm, zero_init=True)
    variables = jax.jit(block.init)(KEY, x)
    assert variables["params"].keys() == {"bn1", "conv1", "bn2", "conv2", "bn3", "conv3", "downsample_conv"}
    activated = np.maximum(x / np.sqrt(1 + 1e-5), 0)
    kernel = variables["params"]["downsample_conv"]["kernel"][0, 0]
    np.testing.assert_allclose(block.apply(variables, x), activated[:, ::2, ::2] @ kernel, atol=1e-6)
    same = block.clone(width=1, stride=1)
    np.testing.assert_array_equal(same.apply(jax.jit(same.init)(KEY, x), x), x)  # the raw input


def test_stochastic_depth_gives_each_example_a_whole_branch_divided_by_its_probability_or_none():
    model = create_model("resnet20", num_classes=10, stage_sizes=(1, 1), width=4, norm="none", stochastic_depth=0.3)
    images = jax.random.normal(KEY, (2000, 4, 4, 3))
    variables = jax.jit(model.init, static_argnames="train")(KEY, images[:1], train=False)

    @functools.partial(jax.jit, static_argnames="train")
    def addends(variables, images, train):
        _, looks = model.apply(variables, images, train=train, mutable=["addends"], rngs={"dropout": KEY})
        return [[looks["addends"][block][name][0] for name in ("skip", "branch")] for block in blocks]

    blocks = ("stage1_block1", "stage2_block1")
    first, (skip, branch) = jax.device_get(addends(variables, images, train=True))
    evaluated_first, (evaluated_skip, evaluated_branch) = jax.device_get(addends(variables, images, train=False))
    np.testing.assert_allclose(first, evaluated_first, rtol=1e-6)
    np.testing.assert_allclose(skip, evaluated_skip, rtol=1e-6)
    kept = branch.any((1, 2, 3), keepdims=True)
    assert kept.mean() == pytest.approx(0.7, abs=0.04)  # four standard deviations
    np.testing.assert_allclose(branch, np.where(kept, evaluated_branch / 0.7, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_stochastic_depth_grows_from_the_first_block_to_the_last_in_training_alone(train):
    calls = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            calls.append((context.module.path[0], round(context.module.rate, 6), context.module.deterministic))
        return call(*args, **kwargs)

    model = create_model("preact_resnet18", num_classes=10, stochastic_depth=0.7)
    with nn.intercept_methods(record):
        jax.eval_shape(lambda: model.init({"params": KEY, "dropout": KEY}, jnp.zeros((1, 64, 64, 3)), train=train))
    blocks = [f"stage{stage}_block{block}" for stage in (1, 2, 3, 4) for block in (1, 2)]
    rates = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert calls == [(block, rate, not train) for block, rate in zip(blocks, rates, strict=True)]


@pytest.mark.parametrize(
    ("name", "rate", "message"),
    [
        ("plain20", 0.1, "expected 0 without shortcuts, found 0.1.*Try another model.shortcut"),
        ("resnet20", 1.0, "expected 0 to less than 1, found 1.0"),
        ("resnet20", -0.1, "expected 0 to less than 1, found -0.1"),
    ],
)
def test_a_stochastic_depth_that_leaves_nothing_is_refused(name, rate, message):
    with pytest.raises(UserError, match=f"model.stochastic_depth: {message}"):
        shapes_of(create_model(name, num_classes=10, stochastic_depth=rate), 32)
