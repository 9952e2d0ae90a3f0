import functools
import itertools
import types

import numpy as np
import pytest

from resnet_jax import MODELS, UserError, create_model, list_models
from resnet_jax.models import CIFAR_MODELS, different_attributes
from resnet_jax.models.profile import profile, totals
from tests.models.nets import PUBLISHED, count, published_counts


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


@functools.cache  # tracing takes seconds
def counts(name, **overrides):
    """(parameters, parameters in the profile, multiply-adds in the profile) of a model."""
    size, classes = (32, 10) if name in CIFAR_MODELS else (224, 1000)
    model = create_model(name, num_classes=classes, **overrides)
    traced = {}

    def init(*args, **kwargs):  # one trace for both counts
        traced.update(model.init(*args, **kwargs))
        return traced

    profiled, multiply_adds, _ = totals(profile(types.SimpleNamespace(init=init), (size, size, 3)))
    return np.array([count(traced["params"]), profiled, multiply_adds])


def test_models_differ_by_what_changes_their_logits():
    nets = {name: create_model(name, num_classes=3) for name in MODELS}
    pairs = [pair for pair in itertools.combinations(nets, 2) if len({nets[name].stage_sizes for name in pair}) == 1]
    alike = [pair for pair in pairs if not different_attributes(*map(nets.get, pair))]
    # Basic blocks have one convolution to stride in.
    assert alike == [("resnet18", "resnet18_v1"), ("resnet34", "resnet34_v1")]
    for overrides, expected in (
        ({"norm": {"name": "batch", "momentum": 0.5, "epsilon": 1e-5}, "stochastic_depth": 0.1}, []),
        ({"norm": {"name": "batch", "epsilon": 0.1}}, ["norm"]),
        ({"downsample": "blur", "stem": "small", "shortcut": "none"}, ["stem", "shortcut", "downsample"]),
    ):
        assert different_attributes(nets["resnet50"], create_model("resnet50", num_classes=5, **overrides)) == expected


def counts_of_many_alike(name):
    """The same of a deep net, whose blocks are alike after the first of a stage: one more in each adds the same."""
    (blocks,) = set(create_model(name, num_classes=10).stage_sizes)
    two, three = (counts(name, stage_sizes=(size,) * 3) for size in (2, 3))
    return two + (blocks - 2) * (three - two)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "tiny"])
def test_every_registered_model_and_its_profile_have_the_published_number_of_parameters(name):
    many = name in CIFAR_MODELS and sum(create_model(name, num_classes=10).stage_sizes) > 100
    parameters, profiled, _ = counts_of_many_alike(name) if many else counts(name)
    assert (parameters, profiled) == (published_counts()[name],) * 2


def test_a_deep_net_has_the_numbers_that_follow_from_those_of_two_shorter_ones():
    for name in ("resnet110", "preact_resnet164"):
        np.testing.assert_array_equal(counts_of_many_alike(name), counts(name))


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


@pytest.mark.parametrize(("name", "depth", "factor"), [("wrn_16_8", 16, 8), ("wrn_28_10", 28, 10)])
def test_the_counts_of_wide_nets_follow_from_their_definition_and_round_to_the_papers(name, depth, factor):
    kernels, norms, channels = 3 * 3 * 3 * 16, 0, 16
    for width in (16 * factor, 32 * factor, 64 * factor):
        for _ in range((depth - 4) // 6):
            kernels += 9 * channels * width + 9 * width * width + (channels * width if channels != width else 0)
            norms += 2 * channels + 2 * width
            channels = width
    assert kernels + norms + 2 * channels + channels * 10 + 10 == published_counts()[name]
    source = "Zagoruyko & Komodakis 2016, arXiv:1605.07146, Tables 4 and 5"
    assert round(published_counts()[name], -5) == PUBLISHED["parameter_counts_rounded"][source][name]


def test_models_are_listed_by_pattern():
    assert list_models() == sorted(MODELS)
    assert list_models("seresne*50*") == ["seresnet50", "seresnext50_32x4d"]
    assert list_models("resnet999") == []


def test_the_registry_holds_every_name_that_was_promised():
    depths = (18, 34, 50, 101, 152, 200)
    promised = {f"resnet{depth}{suffix}" for depth in depths for suffix in ("", "_v1")}
    promised |= {f"preact_resnet{depth}" for depth in (*depths, 110, 164, 1001)}
    promised |= {"plain18", "plain34"} | {f"resnet{depth}" for depth in (20, 32, 44, 56, 110, 164, 1001, 1202)}
    promised |= {f"plain{depth}" for depth in (20, 32, 44, 56, 110)}
    promised |= {f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn")}
    promised |= {"wide_resnet50_2", "wide_resnet101_2", "wrn_16_8", "wrn_28_10"}
    promised |= {"resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "seresnext50_32x4d"}
    promised |= {f"resnet{depth}d" for depth in (18, 26, 34, 50, 101, 152)} | {"resnet26", "resnet50_gn"}
    promised |= {f"seresnet{depth}" for depth in (18, 34, 50, 101, 152)}
    promised |= {f"resnetv2_{depth}" for depth in (18, 34, 50, 101)} | {"resnetv2_50x1_bit"}
    promised |= {f"keras_resnet{depth}{version}" for depth in (50, 101, 152) for version in ("", "v2")}
    promised |= {f"flax_resnet{depth}" for depth in depths} | {"big_vision_resnet50"}
    assert promised == MODELS.keys() - {"tiny"}


@pytest.mark.parametrize(
    ("name", "source", "key"),
    [
        *((f"resnet{d}", "torchvision docs (v1.5)", f"resnet{d}") for d in (18, 34, 50, 101, 152)),
        *((f"resnet{d}_v1", "He 2015 Table 1 (v1, stride on the 1x1)", str(d)) for d in (18, 34, 50, 101, 152)),
        *((f"vgg{d}", "He 2015 Table 1 (v1, stride on the 1x1)", f"vgg{d}") for d in (16, 19)),
    ],
)
def test_multiply_adds_equal_the_published_ones(name, source, key):
    _, _, multiply_adds = counts(name)
    # The paper's figures have two digits, some cut off rather than rounded.
    assert multiply_adds == pytest.approx(PUBLISHED["multiply_adds_224"][source][key], rel=0.025)


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
        ("resnet20", {"shortcut": "E"}, "model.shortcut.*known: none, A, B, C, D, B_slim, highway, skipinit"),
        ("resnet20", {"stem": "big"}, "model.stem.*known: imagenet, small, deep, bare_imagenet, bare_small"),
        ("resnet20", {"widht": 3}, "did you mean 'width'"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(name, overrides, message):
    with pytest.raises(UserError, match=message):
        create_model(name, num_classes=10, **overrides)
