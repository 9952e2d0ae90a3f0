import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import UserError, create_model
from resnet_jax.models.blocks import BasicBlock, Block
from resnet_jax.models.conv import conv2d
from resnet_jax.models.norm import batch_norm
from resnet_jax.models.profile import depth, profile
from resnet_jax.models.shortcuts import zero_pad_shortcut
from resnet_jax.training.diagnostics import (
    block_names,
    lesions,
    make_batch_moments,
    make_layer_diagnostics,
    statistics_of_moments,
)
from tests import tiny  # noqa: F401  registers the net "tiny"

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (16, 8, 8, 1))
BATCH = {"image": IMAGES, "target": jax.nn.one_hot(jnp.arange(16) % 10, 10)}


def net(**overrides):
    return create_model("tiny", num_classes=10, **overrides)


def random_variables(model):
    """Initial ones, with norm scales and biases, and statistics, that are not all alike."""
    variables = model.init(KEY, IMAGES[:1], train=False)
    noise = np.random.default_rng(0)

    def vary(x):
        return x * noise.uniform(0.5, 2, x.shape) + (noise.uniform(0, 1, x.shape) if x.ndim < 2 else 0)

    return jax.tree.map(lambda x: np.float32(vary(x)), variables)


def diagnostics(model, variables):
    return jax.jit(make_layer_diagnostics(model, mean=lambda tree: tree))(variables, BATCH, KEY)


def test_the_response_of_a_batch_norm_spreads_as_its_scale_and_bias_say():
    model = net()
    variables = random_variables(model)
    found = diagnostics(model, variables)["response_std"]
    assert set(found) == {"bn1", *(f"stage{s}_block1/bn{n}" for s in (1, 2) for n in (1, 2))}
    for name, value in found.items():
        node = variables["params"]
        for part in name.split("/"):
            node = node[part]
        # Every channel is normalised, so its variance is scale^2, and the biases are the means.
        expected = np.sqrt(np.mean(node["scale"] ** 2) + np.var(node["bias"]))
        assert float(value) == pytest.approx(float(expected), rel=1e-3)


def test_the_ratio_of_branch_to_skip_follows_the_scale_of_the_branch():
    model = net()
    variables = random_variables(model)
    block = variables["params"]["stage1_block1"]
    ratios = [float(diagnostics(model, variables)["branch_to_skip"]["stage1_block1"])]
    block["bn2"] = jax.tree.map(lambda x: 3 * x, block["bn2"])
    ratios.append(float(diagnostics(model, variables)["branch_to_skip"]["stage1_block1"]))
    assert ratios[1] == pytest.approx(3 * ratios[0], rel=1e-5)
    # Here the branch is normalised; the skip is what the stem gives.
    _, activations = model.apply(variables, IMAGES, train=True, features=True, mutable=["batch_stats"])[0]
    branch = np.mean(block["bn2"]["scale"] ** 2 + block["bn2"]["bias"] ** 2)
    skip = np.mean(np.asarray(activations["stem"]) ** 2)
    assert ratios[1] == pytest.approx(np.sqrt(branch / skip), rel=1e-3)


def test_the_ratio_of_a_plain_net_is_infinite():
    model = net(shortcut="none")
    ratios = diagnostics(model, random_variables(model))["branch_to_skip"]
    assert {name: float(ratio) for name, ratio in ratios.items()} == dict.fromkeys(block_names(model), np.inf)


def test_a_norm_scale_is_the_mean_of_its_channels():
    variables = random_variables(net())
    scale = variables["params"]["stage2_block1"]["bn1"]["scale"]
    found = diagnostics(net(), variables)["norm_scale"]["stage2_block1/bn1"]
    assert found == pytest.approx(float(scale.mean()), rel=1e-6)


def lesioned(model, variables, kind):
    return {name: cut for found, name, cut in lesions(model, variables) if found == kind}


def features(model, variables):
    return jax.device_get(model.apply(variables, IMAGES, train=False, features=True)[1])


@pytest.mark.parametrize(
    "overrides",
    [{}, {"norm": {"name": "group", "groups": 2}}, {"norm": "none"}, {"shortcut": "highway"}, {"shortcut": "skipinit"}],
    ids=["batch", "group", "none", "highway", "skipinit"],
)
def test_without_its_branch_a_block_gives_what_comes_by_the_shortcut(overrides):
    model = net(**overrides)
    variables = random_variables(model)
    nets = lesioned(model, variables, "removed")
    assert list(nets) == ["stage1_block1", "stage2_block1"]
    whole, removed = features(model, variables), features(model, nets["stage1_block1"])
    np.testing.assert_array_equal(removed["stem"], whole["stem"])
    carried = whole["stem"]  # not negative, so that the last relu changes nothing
    if overrides.get("shortcut") == "highway":
        gate = variables["params"]["stage1_block1"]["gate"]
        carried = carried * (1 - jax.nn.sigmoid(carried @ gate["kernel"][0, 0] + gate["bias"]))
    np.testing.assert_allclose(removed["stage1"], carried, rtol=1e-5)
    assert np.abs(whole["stage1"] - carried).max() > 0.01


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
def test_without_its_branch_a_preactivated_block_still_gives_its_shortcut(shortcut):
    model = create_model("preact_resnet110", num_classes=10, stage_sizes=(1, 1), width=4, shortcut=shortcut)
    variables = random_variables(model)
    removed = features(model, lesioned(model, variables, "removed")["stage2_block1"])
    block, statistics = variables["params"]["stage2_block1"], variables["batch_stats"]["stage2_block1"]["bn1"]
    x = (removed["stage1"] - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5)
    x = np.maximum(x * block["bn1"]["scale"] + block["bn1"]["bias"], 0)[:, ::2, ::2]  # shared by branch and shortcut
    if shortcut == "A":
        expected = np.pad(x, ((0, 0), (0, 0), (0, 0), (0, 4)))
    else:
        expected = x @ block["downsample_conv"]["kernel"][0, 0]
    np.testing.assert_allclose(removed["stage2"], expected, rtol=1e-4, atol=1e-5)


def test_a_projection_stays_when_the_branch_goes():
    model = net(shortcut="C")
    variables = random_variables(model)
    removed = features(model, lesioned(model, variables, "removed")["stage1_block1"])
    block, statistics = variables["params"]["stage1_block1"], variables["batch_stats"]["stage1_block1"]["downsample_bn"]
    projected = removed["stem"] @ block["downsample_conv"]["kernel"][0, 0]
    normalised = (projected - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5)
    expected = np.maximum(normalised * block["downsample_bn"]["scale"] + block["downsample_bn"]["bias"], 0)
    np.testing.assert_allclose(removed["stage1"], expected, rtol=1e-4, atol=1e-5)


def test_in_a_plain_net_neighbours_are_swapped_but_nothing_is_removed():
    model = create_model("tiny", num_classes=10, stage_sizes=(2, 2), shortcut="none")
    assert [kind for kind, _, _ in lesions(model, random_variables(model))] == ["swapped"]


def test_swapped_neighbours_work_in_the_other_order():
    model = create_model("tiny", num_classes=10, stage_sizes=(2, 2))
    variables = random_variables(model)
    swapped = lesioned(model, variables, "swapped")
    assert list(swapped) == ["stage1_block1, stage1_block2"]  # those of stage 2 have different shapes
    conv = functools.partial(conv2d, dtype=jnp.float32)
    norm = functools.partial(batch_norm, train=False, dtype=jnp.float32)
    block = BasicBlock(4, 1, zero_pad_shortcut, conv, norm, side_norm=norm)
    x = features(model, variables)["stem"]
    for name in ("stage1_block2", "stage1_block1"):
        x = block.apply({collection: tree[name] for collection, tree in variables.items()}, x)
    stage1 = features(model, swapped["stage1_block1, stage1_block2"])["stage1"]
    np.testing.assert_allclose(stage1, x, rtol=1e-5, atol=1e-6)


def test_blocks_are_listed_in_the_order_of_the_forward_pass():
    model = net(stage_sizes=(10, 1))
    names = [*(f"stage1_block{index}" for index in range(1, 11)), "stage2_block1"]
    assert block_names(model) == names
    layers = [layer.name.split("/")[0] for layer in profile(model, (8, 8, 1))]
    assert [name for name in dict.fromkeys(layers) if name in names] == names
    assert block_names(create_model("vgg11", num_classes=10)) == []


def test_precise_statistics_are_those_of_all_batches_at_once():
    model = net(norm={"name": "batch", "momentum": 0.0})
    variables = random_variables(model)
    moments = make_batch_moments(model, mean=lambda tree: tree)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 8, 1)) * jnp.arange(1, 5).reshape(4, 1, 1, 1, 1)
    batches = [moments(variables, {"image": batch}, KEY) for batch in images]
    precise = statistics_of_moments(jax.tree.map(lambda *x: sum(x) / 4, *batches))
    outputs = jax.lax.conv(  # of the first layer for all images, without our model
        images.reshape(32, 8, 8, 1).transpose(0, 3, 1, 2),
        variables["params"]["conv1"]["kernel"].transpose(3, 2, 0, 1),
        (1, 1),
        "SAME",
    )
    np.testing.assert_allclose(precise["bn1"]["mean"], outputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(precise["bn1"]["var"], outputs.var((0, 2, 3)), rtol=1e-4)


class ToyBlock(Block):
    """A pre-activated block whose layers are called as in no other net."""

    def branch(self, x):
        y = self.conv(self.width, 3, self.stride, name="kneel")(nn.relu(self.norm(name="alpha")(x)))
        return x, self.conv(self.width, 3, name="omega")(nn.relu(self.norm(name="beta")(y)))


def toy_gate(branch, *, conv, norm):
    return branch * nn.sigmoid(norm(name="gate_bn")(conv(branch.shape[-1], 1, name="conv9")(branch)))


def test_a_block_with_other_names_a_gate_and_a_deeper_branch_is_seen_like_the_others():
    model = net(block=ToyBlock, gate=toy_gate)
    variables = random_variables(model)
    found = diagnostics(model, variables)
    main_path = {"bn1", *(f"stage{s}_block1/{name}" for s in (1, 2) for name in ("alpha", "beta"))}
    assert found["response_std"].keys() == found["norm_scale"].keys() == main_path
    assert found["branch_to_skip"].keys() == {"stage1_block1", "stage2_block1"}
    assert depth(profile(model, (8, 8, 1))) == 6  # without the gates' convolutions
    whole = features(model, variables)
    removed = features(model, lesioned(model, variables, "removed")["stage1_block1"])
    np.testing.assert_array_equal(removed["stage1"], whole["stem"])
    assert np.abs(whole["stage1"] - whole["stem"]).max() > 0.01


def shapes_of_diagnostics(model):
    variables = jax.eval_shape(functools.partial(model.init, train=False), KEY, IMAGES)
    return jax.eval_shape(make_layer_diagnostics(model, mean=lambda tree: tree), variables, BATCH, KEY)


def test_a_layer_or_a_block_that_does_not_take_part_is_an_error():
    class OwnNorm(Block):
        def branch(self, x):
            return x, nn.BatchNorm(use_running_average=False, name="bn1")(self.conv(4, 3, name="conv1")(x))

    class WithoutBlocks(nn.Module):
        stages = (("stage1_block1",),)

        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(10)(images.mean((1, 2)))

    class OtherNorm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("gamma", nn.initializers.ones, ())

    with pytest.raises(UserError, match="norms that are announced, found stage1_block1/bn1; make norms by the `norm`"):
        shapes_of_diagnostics(net(block=OwnNorm, stage_sizes=(1,)))
    with pytest.raises(UserError, match="expected the addends of blocks .'stage1_block1'., found those of ..;"):
        shapes_of_diagnostics(WithoutBlocks())
    with pytest.raises(UserError, match="to be scale and bias, found .'gamma'. in bn1"):
        shapes_of_diagnostics(net(norm=lambda *, name, **_: OtherNorm(name=name)))


def test_statistics_of_another_kind_are_refused():
    with pytest.raises(
        UserError, match="expected the statistics mean and var of a norm, found .'count', 'mean', 'var'"
    ):
        statistics_of_moments({"block": {"bn1": {"mean": 0.0, "var": 1.0, "count": 3}}})


def test_all_removed_branches_share_one_program():
    model = net()
    trees = [jax.tree.structure(cut) for cut in lesioned(model, random_variables(model), "removed").values()]
    assert len(trees) == 2 and trees[0] == trees[1]


def test_vgg_shows_the_responses_of_its_norms_and_has_no_blocks():
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    batch = {"image": images, "target": jax.ShapeDtypeStruct((2, 10), jnp.float32)}
    for name, norms in (("vgg11", 0), ("vgg11_bn", 8)):
        model = create_model(name, num_classes=10)
        variables = jax.eval_shape(functools.partial(model.init, train=False), KEY, images)
        found = jax.eval_shape(make_layer_diagnostics(model, mean=lambda tree: tree), variables, batch, KEY)
        assert len(found["response_std"]) == len(found["norm_scale"]) == norms
        assert found["branch_to_skip"] == {}
        assert list(lesions(model, variables)) == []
