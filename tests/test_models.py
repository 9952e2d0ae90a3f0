import functools
import itertools
import json
import pathlib
import types
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import MODELS, UserError, create_model
from resnet_jax.models import CIFAR_MODELS, IMAGENET_MODELS, layers
from resnet_jax.models.profile import profile, totals
from resnet_jax.models.resnet import PreActBottleneckBlock

PUBLISHED = json.loads((pathlib.Path(__file__).parent.parent / "resnet_jax" / "published.json").read_text())
KEY = jax.random.key(0)


def shapes_of(model, size, channels=3):
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda key, images: model.init(key, images, train=False), KEY, images)


@functools.cache
def params_of(name, **overrides):
    size, classes = (32, 10) if name in CIFAR_MODELS else (224, 1000)
    return shapes_of(create_model(name, num_classes=classes, **overrides), size)["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def cifar_parameters(depth, kind, version):
    """(kernels and head, norms) of He et al. 2015, section 4.2 and 2016, section 5, written out; 10 classes."""
    layers_per_block, expansion = {"basic": (2, 1), "bottleneck": (3, 4)}[kind]
    kernels, norms, channels = 3 * 3 * 3 * 16, 2 * 16, 16
    for width in (16, 32, 64):
        out = expansion * width
        for block in range((depth - 2) // (3 * layers_per_block)):
            if kind == "basic":
                kernels += 9 * channels * width + 9 * width * width
            else:
                kernels += channels * width + 9 * width * width + width * out
                if block == 0:
                    kernels += channels * out  # option B
                    norms += 2 * out if version == 1 else 0
            inside = (layers_per_block - 1) * width
            norms += 2 * (inside + out) if version == 1 else 2 * (channels + inside)
            channels = out
    if version == 2:
        norms += 2 * channels - 2 * 16  # one after the last block, none in the first
    return kernels + channels * 10 + 10, norms


def published_counts():
    counts = {}
    for table in PUBLISHED["parameter_counts"].values():
        counts.update(table)
    # The stride has no weights; a plain net is its residual twin without the three projections of option B.
    counts |= {f"{name}_v1": counts[name] for name in IMAGENET_MODELS if f"{name}_v1" in IMAGENET_MODELS}
    projections = sum(in_ * out + 2 * out for in_, out in ((64, 128), (128, 256), (256, 512)))
    counts |= {f"plain{depth}": counts[f"resnet{depth}"] - projections for depth in (18, 34)}
    counts |= {f"plain{depth}": counts[f"resnet{depth}"] for depth in (20, 32, 44, 56, 110)}
    counts |= {f"preact_resnet{depth}": counts[f"resnetv2_{depth}"] for depth in (18, 34, 50, 101)}
    # Keras gives biases to the stem, to the last convolution of each block and to the projections.
    blocks_and_channels = ((3, 256), (8, 512), (36, 1024), (3, 2048))
    biases = 64 + sum((blocks + 1) * channels for blocks, channels in blocks_and_channels)
    counts["preact_resnet152"] = counts["ResNet152V2"] - biases
    # The norm after each convolution of v1 is before the next one in v2; only those of the projections are gone.
    counts["preact_resnet200"] = counts["resnet200"] - 2 * sum(channels for _, channels in blocks_and_channels)
    return counts


@pytest.mark.parametrize("name", [name for name in MODELS if name != "tiny"])
def test_every_registered_model_and_its_profile_have_the_published_number_of_parameters(name):
    size, classes = (32, 10) if name in CIFAR_MODELS else (224, 1000)
    model = create_model(name, num_classes=classes)
    traced = {}

    def init(*args, **kwargs):  # one trace for both counts: the deepest nets take seconds
        traced.update(model.init(*args, **kwargs))
        return traced

    profiled, _, _ = totals(profile(types.SimpleNamespace(init=init), (size, size, 3)))
    assert (count(traced["params"]), profiled) == (published_counts()[name],) * 2


@pytest.mark.parametrize(
    ("name", "kind", "version"),
    [
        *((f"resnet{depth}", "basic", 1) for depth in (20, 32, 44, 56, 110, 1202)),
        *((f"resnet{depth}", "bottleneck", 1) for depth in (164, 1001)),
        ("preact_resnet110", "basic", 2),
        *((f"preact_resnet{depth}", "bottleneck", 2) for depth in (164, 1001)),
    ],
)
def test_the_counts_of_cifar_nets_follow_from_their_definition_and_round_to_the_papers(name, kind, version):
    kernels, norms = cifar_parameters(int(name.split("resnet")[1]), kind, version)
    assert kernels + norms == published_counts()[name]
    rounded = {name: value for table in PUBLISHED["parameter_counts_rounded"].values() for name, value in table.items()}
    if name in rounded:
        # He 2016 give 10.2M for 1001 layers, which is the number without norms; with them it is 10.3M.
        found = kernels if name == "preact_resnet1001" else kernels + norms
        digits = 2 if rounded[name] < 2e6 else 3
        assert float(f"{found:.{digits - 1}e}") == rounded[name]


def test_the_registry_holds_every_name_that_was_promised():
    depths = (18, 34, 50, 101, 152, 200)
    promised = {f"resnet{depth}{suffix}" for depth in depths for suffix in ("", "_v1")}
    promised |= {f"preact_resnet{depth}" for depth in (*depths, 110, 164, 1001)}
    promised |= {"plain18", "plain34"} | {f"resnet{depth}" for depth in (20, 32, 44, 56, 110, 164, 1001, 1202)}
    promised |= {f"plain{depth}" for depth in (20, 32, 44, 56, 110)}
    promised |= {f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn")}
    assert promised == MODELS.keys() - {"tiny"}


def test_group_norm_resnet50_has_the_published_number_of_parameters():
    model = create_model("resnet50", num_classes=1000, norm="group")
    assert count(shapes_of(model, 224)["params"]) == published_counts()["resnet50_gn"]


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
    list(itertools.product(["resnet20", "preact_resnet164"], layers.SHORTCUTS, layers.NORMS)),
)
def test_shortcuts_and_norms_combine_in_bfloat16_and_the_profile_counts_all_their_parameters(name, shortcut, norm):
    norm = functools.partial(layers.group_norm, groups=8) if norm == "group" else norm
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
    np.testing.assert_array_equal(sum(layers.zero_pad_shortcut(x, branch, 2, None, None)), expected)


@pytest.mark.parametrize(
    ("name", "source", "key"),
    [
        *((f"resnet{d}", "torchvision docs (v1.5)", f"resnet{d}") for d in (18, 34, 50, 101, 152)),
        *((f"resnet{d}_v1", "He 2015 Table 1 (v1, stride on the 1x1)", str(d)) for d in (18, 34, 50, 101, 152)),
        *((f"vgg{d}", "He 2015 Table 1 (v1, stride on the 1x1)", f"vgg{d}") for d in (16, 19)),
    ],
)
def test_multiply_adds_equal_the_published_ones(name, source, key):
    _, multiply_adds, _ = totals(profile(create_model(name, num_classes=1000), (224, 224, 3)))
    # The paper's figures have two digits, some cut off rather than rounded.
    assert multiply_adds == pytest.approx(PUBLISHED["multiply_adds_224"][source][key], rel=0.025)


def test_convolutions_start_as_he_normal_fan_out():
    variables = create_model("resnet18", num_classes=10).init(KEY, jnp.zeros((1, 64, 64, 3)), train=False)
    for block, fan_out in (("stage2_block2", 9 * 128), ("stage4_block1", 9 * 512)):
        kernel = np.asarray(variables["params"][block]["conv1"]["kernel"])
        assert kernel.std() == pytest.approx(np.sqrt(2 / fan_out), rel=0.02)
        assert abs(kernel.mean()) < 0.02 * kernel.std()
        assert np.abs(kernel).max() > 3.5 * kernel.std()  # normal, not truncated at two deviations


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
    norm = functools.partial(layers.batch_norm, train=False, dtype=jnp.float32)
    block = PreActBottleneckBlock(
        width=2, stride=2, shortcut=layers.SHORTCUTS["B"], norm=norm, zero_init=True, dtype=jnp.float32
    )
    variables = jax.jit(block.init)(KEY, x)
    assert variables["params"].keys() == {"bn1", "conv1", "bn2", "conv2", "bn3", "conv3", "downsample_conv"}
    activated = np.maximum(x / np.sqrt(1 + 1e-5), 0)
    kernel = variables["params"]["downsample_conv"]["kernel"][0, 0]
    np.testing.assert_allclose(block.apply(variables, x), activated[:, ::2, ::2] @ kernel, atol=1e-6)
    same = block.clone(width=1, stride=1)
    np.testing.assert_array_equal(same.apply(jax.jit(same.init)(KEY, x), x), x)  # the raw input


def test_skipinit_blocks_begin_as_the_relu_of_their_input():
    images = jax.random.normal(KEY, (2, 8, 8, 3))
    model = create_model("resnet20", num_classes=10, stage_sizes=(1, 1), shortcut="skipinit")
    variables = jax.jit(model.init, static_argnames="train")(KEY, images, train=False)
    _, activations = model.apply(variables, images, train=False, features=True)
    np.testing.assert_array_equal(activations["stage1"], activations["stem"])
    np.testing.assert_array_equal(activations["stage2"][..., :16], activations["stem"][:, ::2, ::2])
    assert not activations["stage2"][..., 16:].any()


def test_a_blur_spreads_a_pixel_binomially_and_is_zero_padded():
    pixel = np.zeros((1, 5, 6, 2), np.float32)
    pixel[0, 2, 3, 1] = 16
    expected = np.zeros_like(pixel)
    expected[0, 1:4, 2:5, 1] = [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    np.testing.assert_array_equal(layers.blur(pixel), expected)
    blurred = layers.blur(np.full((1, 5, 6, 2), 16, np.float32))
    np.testing.assert_array_equal(blurred[:, 1:-1, 1:-1], np.full((1, 3, 4, 2), 16))
    np.testing.assert_array_equal(blurred[0, :, 0, 0], [9, 12, 12, 12, 9])


@pytest.mark.parametrize(
    ("name", "shortcut"),
    [("resnet50", "B"), ("resnet50_v1", "B"), *(("preact_resnet164", s) for s in layers.SHORTCUTS), ("resnet20", "C")],
)
def test_all_strided_convolutions_of_blocks_see_a_blurred_input_and_no_parameter_is_new(name, shortcut, monkeypatch):
    overrides = {"shortcut": shortcut, "stage_sizes": (1, 2, 1)}
    events = []

    def recording_blur(x):
        events.append(("blur", x.shape))
        return x

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Conv) and context.module.strides != (1, 1):
            events.append((context.module.name, args[0].shape))
        return call(*args, **kwargs)

    monkeypatch.setattr(layers, "blur", recording_blur)
    with nn.intercept_methods(record):
        blurred = shapes_of(create_model(name, num_classes=10, downsample="blur", **overrides), 64)
    convs = [event for event in events if event[1] != (1, 64, 64, 3)]  # without the stem's
    assert [kind for kind, _ in convs[::2]] == ["blur"] * (4 if shortcut in ("B", "C", "highway") else 2)
    assert [shape for _, shape in convs[::2]] == [shape for kind, shape in convs[1::2] if kind != "blur"]
    assert blurred == shapes_of(create_model(name, num_classes=10, **overrides), 64)


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


class Shortcut(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x, branch):
        return layers.SHORTCUTS[self.kind](x, branch, x.shape[1] // branch.shape[1], None, x.dtype)


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


def test_no_norm_is_the_shift_of_a_biased_convolution():
    params = params_of("resnet20", norm="none")
    assert count(params) == 269_722 - (16 * 7 + 32 * 6 + 64 * 6)  # the scales of its 19 norms
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
    shift = layers.no_norm(name=None, train=True, dtype=jnp.float32)
    np.testing.assert_array_equal(shift.init(KEY, x)["params"]["bias"], np.zeros(4))
    bias = np.array([1.0, -2.0, 3.0, 0.5], np.float32)
    expected = np.stack([x[..., channel] + bias[channel] for channel in range(4)], axis=-1)
    np.testing.assert_array_equal(shift.apply({"params": {"bias": bias}}, x), expected)


def test_norms_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="norm.groups: expected a divisor of the 16 channels of bn1, found 32; try 16"):
        shapes_of(create_model("resnet20", num_classes=10, norm="group"), 32)
    with pytest.raises(UserError, match="model.zero_init_last_scale.*model.shortcut=skipinit"):
        shapes_of(create_model("resnet20", num_classes=10, norm="none", zero_init_last_scale=True), 32)


def test_vgg_starts_as_torchvisions():
    model = create_model("vgg11", num_classes=1000)

    @jax.jit  # of the 133 million numbers only those that are returned are drawn
    def some(key):
        params = model.init(key, jnp.zeros((1, 32, 32, 3)), train=False)["params"]
        return params["fc"]["kernel"], params["stage3_conv2"]["kernel"], params["fc"]["bias"]

    dense, kernel, bias = jax.device_get(some(KEY))
    assert dense.std() == pytest.approx(0.01, rel=0.01)
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.01)
    assert not bias.any()


@pytest.mark.parametrize("train", [True, False])
def test_vgg_drops_half_after_each_hidden_dense_layer_in_training_alone(train):
    calls = []

    def record(call, args, kwargs, context):
        module = context.module
        if isinstance(module, nn.Dropout):
            calls.append((module.rate, module.deterministic))
        elif isinstance(module, nn.Dense):
            calls.append(module.name)
        return call(*args, **kwargs)

    keys = {"params": KEY, "dropout": KEY}
    with nn.intercept_methods(record):
        model = create_model("vgg11", num_classes=10)
        jax.eval_shape(lambda: model.init(keys, jnp.zeros((1, 32, 32, 3)), train=train))
    assert calls == ["fc1", (0.5, not train), "fc2", (0.5, not train), "fc"]


@pytest.mark.parametrize(("name", "smallest"), [("resnet18", 17), ("resnet50", 17), ("resnet20", 3), ("vgg11", 32)])
def test_an_image_too_small_for_the_strides_is_refused_with_the_smallest_size(name, smallest):
    model = create_model(name, num_classes=10)
    shapes_of(model, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes_of(model, smallest)
    with pytest.raises(UserError, match=f"the smallest is {smallest}x{smallest}"):
        shapes_of(model, smallest - 1)


def test_a_stem_made_for_other_sizes_is_warned_of():
    with pytest.warns(UserWarning, match="model.stem=small"):
        shapes_of(create_model("resnet18", num_classes=10), 32)
    with pytest.warns(UserWarning, match="model.stem=imagenet"):
        shapes_of(create_model("resnet18", num_classes=10, stem="small"), 224)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shapes_of(create_model("resnet18", num_classes=10), 224)
        shapes_of(create_model("resnet18", num_classes=10, stem="small"), 32)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (jnp.zeros((8, 8, 3)), "with 1 or 3 channels"),
        (jnp.zeros((1, 8, 8, 2)), "with 1 or 3 channels"),
        (jnp.zeros((1, 8, 8, 3), jnp.uint8), "found uint8"),
    ],
)
def test_images_of_another_kind_are_refused(images, message):
    with pytest.raises(UserError, match=message):
        create_model("resnet20", num_classes=10).init(KEY, images, train=False)


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_the_activations_on_the_way_to_the_logits(channels):
    images = jax.random.normal(KEY, (2, 32, 32, channels))
    model = create_model("resnet20", num_classes=7)
    variables = model.init(KEY, images, train=False)
    logits, activations = model.apply(variables, images, train=False, features=True)
    assert {name: x.shape for name, x in activations.items()} == {
        "stem": (2, 32, 32, 16),
        "stage1": (2, 32, 32, 16),
        "stage2": (2, 16, 16, 32),
        "stage3": (2, 8, 8, 64),
        "pre_logits": (2, 64),
        "logits": (2, 7),
    }
    np.testing.assert_array_equal(logits, model.apply(variables, images, train=False))
    np.testing.assert_allclose(activations["pre_logits"], activations["stage3"].mean((1, 2)), rtol=1e-6)
    fc = variables["params"]["fc"]
    np.testing.assert_allclose(logits, activations["pre_logits"] @ fc["kernel"] + fc["bias"][None], rtol=1e-5)


def test_bfloat16_computes_close_to_float32_and_keeps_float32_state():
    images = jax.random.normal(KEY, (8, 16, 16, 3))
    exact, rounded = (create_model("resnet20", num_classes=10, dtype=d) for d in (jnp.float32, jnp.bfloat16))
    variables = rounded.init(KEY, images, train=False)
    logits, updated = rounded.apply(variables, images, train=True, mutable=["batch_stats"])
    assert {x.dtype for x in jax.tree.leaves((variables, updated, logits))} == {jnp.dtype(jnp.float32)}
    reference, _ = exact.apply(variables, images, train=True, mutable=["batch_stats"])
    assert not np.array_equal(logits, reference)
    np.testing.assert_allclose(logits, reference, atol=0.1 * np.abs(reference).max())


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "vgg16",
            {"shortcut": "A"},
            "model.shortcut.*vgg16 has no such attribute.*known: num_classes, stage_sizes, dtype",
        ),
        ("vgg16", {"norm": "group"}, "model.norm.*vgg16 has no such attribute"),
        ("vgg16", {"downsample": "blur"}, "model.downsample.*vgg16 has no such attribute"),
        ("resnet20", {"downsample": "blurr"}, "did you mean 'blur'"),
        ("resnet20", {"norm": "layer"}, "model.norm.*known: batch, group, none"),
        ("rsnet50", {}, "did you mean 'resnet50'"),
        ("resnet20", {"shortcut": "D"}, "model.shortcut.*known: none, A, B, C, highway, skipinit"),
        ("resnet20", {"stem": "big"}, "model.stem.*known: imagenet, small"),
        ("resnet20", {"widht": 3}, "did you mean 'width'"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(name, overrides, message):
    with pytest.raises(UserError, match=message):
        create_model(name, num_classes=10, **overrides)
