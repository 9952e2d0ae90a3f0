import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import create_model
from resnet_jax.build import Run
from resnet_jax.measure import block_names, lesions, make_batch_statistics, make_layer_measures, statistics_of_moments
from resnet_jax.models import layers
from resnet_jax.models.resnet import BasicBlock
from resnet_jax.probes import LayerProbe, probe_batch_statistics, probe_lesions
from resnet_jax.step import identity
from tests.tiny import tiny_config

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


def measures(model, variables):
    return jax.jit(make_layer_measures(model, mean=identity))(variables, BATCH, KEY)


def test_the_response_of_a_batch_norm_spreads_as_its_scale_and_bias_say():
    model = net()
    variables = random_variables(model)
    found = measures(model, variables)["response_std"]
    assert set(found) == {"bn1", *(f"stage{s}_block1/bn{n}" for s in (1, 2) for n in (1, 2))}
    for name, value in found.items():
        node = variables["params"]
        for part in name.split("/"):
            node = node[part]
        # Every channel is normalised, so its variance is scale^2, and the biases are the means.
        expected = np.sqrt(np.mean(node["scale"] ** 2) + np.var(node["bias"]))
        assert float(value) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("devices", [1, 4])
def test_gradient_norms_of_the_parts_make_that_of_the_next_step(devices):
    run = Run(tiny_config(parallel__devices=devices, measure__layers=True, augment__mixup=0.2))
    state, _ = run.train_steps(1)(run.initial_state(), run.feed(0))
    parts = LayerProbe(run).measure(state, 1)["grad_norm"]
    _, sums = run.train_steps(1)(state, run.feed(1))
    assert list(parts) == ["conv1", "bn1", "stage1_block1", "stage2_block1", "fc"]  # the order of the forward pass
    assert np.sqrt(sum(value**2 for value in parts.values())) == pytest.approx(float(sums["grad_norm"][0]), rel=1e-4)


def test_the_ratio_of_branch_to_skip_follows_the_scale_of_the_branch():
    model = net()
    variables = random_variables(model)
    block = variables["params"]["stage1_block1"]
    ratios = [float(measures(model, variables)["branch_to_skip"]["stage1_block1"])]
    block["bn2"] = jax.tree.map(lambda x: 3 * x, block["bn2"])
    ratios.append(float(measures(model, variables)["branch_to_skip"]["stage1_block1"]))
    assert ratios[1] == pytest.approx(3 * ratios[0], rel=1e-5)
    # Here the branch is normalised; the skip is what the stem gives.
    _, activations = model.apply(variables, IMAGES, train=True, features=True, mutable=["batch_stats"])[0]
    branch = np.mean(block["bn2"]["scale"] ** 2 + block["bn2"]["bias"] ** 2)
    skip = np.mean(np.asarray(activations["stem"]) ** 2)
    assert ratios[1] == pytest.approx(np.sqrt(branch / skip), rel=1e-3)


def test_a_plain_net_has_no_ratio_and_a_scale_is_the_mean_of_its_channels():
    run = Run(tiny_config(model__shortcut="none", measure__layers=True))
    found = LayerProbe(run).measure(run.initial_state(), 0)
    assert found["branch_to_skip"] == {}
    variables = random_variables(net())
    scale = variables["params"]["stage2_block1"]["bn1"]["scale"]
    found = measures(net(), variables)["norm_scale"]["stage2_block1/bn1"]
    assert found == pytest.approx(float(scale.mean()), rel=1e-6)


@pytest.mark.parametrize(("every", "steps", "due"), [(10, 25, [0, 10, 20, 25]), (100, 25, [0, 25])])
def test_layers_are_measured_at_the_start_at_logged_steps_and_at_the_end(every, steps, due):
    probe = LayerProbe(Run(tiny_config(measure__layers=True, log__every_steps=every, train__steps=steps)))
    assert [step for step in range(steps + 1) if probe.is_due(step)] == due
    assert not LayerProbe(Run(tiny_config())).is_due(0)


def damaged(model, variables, kind):
    return {name: damaged for found, name, damaged in lesions(model, variables) if found == kind}


def features(model, variables):
    return jax.device_get(model.apply(variables, IMAGES, train=False, features=True)[1])


@pytest.mark.parametrize(
    "overrides",
    [{}, {"norm": layers.group_norm}, {"norm": layers.no_norm}, {"shortcut": "highway"}, {"shortcut": "skipinit"}],
    ids=["batch", "group", "none", "highway", "skipinit"],
)
def test_without_its_branch_a_block_gives_what_comes_by_the_shortcut(overrides):
    if overrides.get("norm") is layers.group_norm:
        overrides = {"norm": lambda **settings: layers.group_norm(groups=2, **settings)}
    model = net(**overrides)
    variables = random_variables(model)
    lesioned = damaged(model, variables, "removed")
    assert list(lesioned) == ["stage1_block1", "stage2_block1"]
    whole, removed = features(model, variables), features(model, lesioned["stage1_block1"])
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
    removed = features(model, damaged(model, variables, "removed")["stage2_block1"])
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
    removed = features(model, damaged(model, variables, "removed")["stage1_block1"])
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
    swapped = damaged(model, variables, "swapped")
    assert list(swapped) == ["stage1_block1, stage1_block2"]  # those of stage 2 have different shapes
    block = BasicBlock(4, 1, layers.zero_pad_shortcut, _norm, None, jnp.float32)
    x = features(model, variables)["stem"]
    for name in ("stage1_block2", "stage1_block1"):
        x = block.apply({collection: tree[name] for collection, tree in variables.items()}, x)
    stage1 = features(model, swapped["stage1_block1, stage1_block2"])["stage1"]
    np.testing.assert_allclose(stage1, x, rtol=1e-5, atol=1e-6)


def _norm(**settings):
    return layers.batch_norm(train=False, dtype=jnp.float32, **settings)


def test_blocks_are_listed_in_the_order_of_the_forward_pass():
    names = ["stage2_block1", "stage1_block10", "stage1_block9", "conv1"]
    assert block_names(dict.fromkeys(names)) == ["stage1_block9", "stage1_block10", "stage2_block1"]


def test_precise_statistics_are_those_of_all_batches_at_once():
    model = net(norm=lambda **settings: layers.batch_norm(momentum=0.0, **settings))
    variables = random_variables(model)
    moments = make_batch_statistics(model, mean=identity)
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


def test_what_a_run_measures_after_training_is_scored_on_its_splits():
    run = Run(tiny_config(augment__crop=0, norm__momentum=0.999))
    state = run.initial_state()
    for step in range(30):
        state, _ = run.train_steps(1)(state, run.feed(step))
    # With such a momentum the running statistics are still the initial ones, and useless.
    scores = probe_batch_statistics(run, state, "test")
    assert scores["precise"]["loss"] < scores["running"]["loss"] - 0.05
    found = probe_lesions(run, state.variables, "test")
    assert found["accuracy"] == scores["running"]["accuracy"]
    assert found["removed"].keys() == {"stage1_block1", "stage2_block1"}
