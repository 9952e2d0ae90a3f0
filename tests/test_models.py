import json
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import MODELS, UserError, create_model
from resnet_jax.models import CIFAR_MODELS, IMAGENET_MODELS, layers
from resnet_jax.models.profile import profile, totals

PUBLISHED = json.loads((pathlib.Path(__file__).parent.parent / "resnet_jax" / "published.json").read_text())
KEY = jax.random.key(0)


def shapes_of(model, size, channels=3):
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda key, images: model.init(key, images, train=False), KEY, images)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def published_counts():
    counts = {}
    for table in PUBLISHED["parameter_counts"].values():
        counts.update(table)
    # The stride has no weights; a plain net is its residual twin without the three projections of option B.
    counts |= {f"{name}_v1": counts[name] for name in IMAGENET_MODELS if f"{name}_v1" in IMAGENET_MODELS}
    projections = sum(in_ * out + 2 * out for in_, out in ((64, 128), (128, 256), (256, 512)))
    counts |= {f"plain{depth}": counts[f"resnet{depth}"] - projections for depth in (18, 34)}
    counts |= {f"plain{depth}": counts[f"resnet{depth}"] for depth in (20, 32, 44, 56, 110)}
    return counts


@pytest.mark.parametrize("name", [name for name in MODELS if name != "tiny"])
def test_every_registered_model_has_the_published_number_of_parameters(name):
    is_cifar = name in CIFAR_MODELS
    model = create_model(name, num_classes=10 if is_cifar else 1000)
    assert count(shapes_of(model, 32 if is_cifar else 224)["params"]) == published_counts()[name]


def test_the_registry_holds_every_name_that_was_promised():
    depths = (18, 34, 50, 101, 152, 200)
    promised = {f"resnet{depth}{suffix}" for depth in depths for suffix in ("", "_v1")}
    promised |= {"plain18", "plain34"} | {f"resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)}
    promised |= {f"plain{depth}" for depth in (20, 32, 44, 56, 110)}
    assert promised == MODELS.keys() - {"tiny"}


def test_the_plain_twin_of_an_option_a_net_has_the_very_same_parameters():
    residual = shapes_of(create_model("resnet20", num_classes=10), 32)
    plain = shapes_of(create_model("plain20", num_classes=10), 32)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), residual) == jax.tree.map(lambda x: (x.shape, x.dtype), plain)
    images = jax.random.normal(KEY, (2, 32, 32, 3))
    variables = create_model("resnet20", num_classes=10).init(KEY, images, train=False)
    outputs = [create_model(n, num_classes=10).apply(variables, images, train=False) for n in ("resnet20", "plain20")]
    assert not np.allclose(*outputs)


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


@pytest.mark.parametrize(("name", "smallest"), [("resnet18", 17), ("resnet50", 17), ("resnet20", 3)])
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
        ("rsnet50", {}, "did you mean 'resnet50'"),
        ("resnet20", {"shortcut": "D"}, "model.shortcut.*known: none, A, B, C"),
        ("resnet20", {"stem": "big"}, "model.stem.*known: imagenet, small"),
        ("resnet20", {"widht": 3}, "did you mean 'width'"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(name, overrides, message):
    with pytest.raises(UserError, match=message):
        create_model(name, num_classes=10, **overrides)
