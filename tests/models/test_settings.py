"""Overrides of `create_model` as a model card holds them: plain JSON."""

import json

import flax.linen as nn
import pytest

from resnet_jax import UserError, create_model
from resnet_jax.models import CONVS, DOWNSAMPLES, NORMS, SHORTCUTS, STEMS
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.stems import Stem
from tests.models.nets import shapes_of


def norms_of(model):
    found = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm | nn.GroupNorm):
            found.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes_of(model, 32)
    return found


def test_settings_reach_every_norm_of_stem_branches_and_projections():
    card = '{"norm": {"name": "batch", "momentum": 0.8, "epsilon": 0.001, "axis_index_groups": [[0, 1], [2, 3]]}}'
    for name, number in (("resnet164", 1 + 2 * 4), ("vgg11_bn", 8)):
        small = {"stage_sizes": (1, 1)} if number == 9 else {}
        norms = norms_of(create_model(name, num_classes=10, **json.loads(card), **small))
        assert len(norms) == number
        for norm in norms:
            assert (norm.momentum, norm.epsilon) == (0.8, 0.001)
            assert norm.axis_index_groups == ((0, 1), (2, 3))
    groups = norms_of(create_model("resnet20", num_classes=10, norm={"name": "group", "groups": 4}))
    assert {(type(norm), norm.num_groups) for norm in groups} == {(nn.GroupNorm, 4)}


@pytest.mark.parametrize(
    ("kind", "table"),
    [("conv", CONVS), ("norm", NORMS), ("downsample", DOWNSAMPLES), ("shortcut", SHORTCUTS), ("stem", STEMS)],
)
def test_a_name_alone_a_mapping_without_settings_and_the_value_are_the_same(kind, table):
    for key, value in table.items():
        for given in (key, {"name": key}, value):
            assert getattr(create_model("resnet20", num_classes=10, **{kind: given}), kind) is value


def test_settings_of_a_stem_are_those_of_its_layers(monkeypatch):
    def layers(images, width, *, conv, norm, kernel=3):
        return conv(width, kernel, name="first")(images)

    monkeypatch.setitem(STEMS, "toy", Stem(layers, stride=1))
    model = create_model("resnet20", num_classes=10, stem={"name": "toy", "kernel": 5})
    assert model.stem.stride == 1
    assert shapes_of(model, 32)["params"]["first"]["kernel"].shape == (5, 5, 3, 16)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            {"norm": {"name": "batch", "momentun": 0.9}},
            "model.norm: batch has no setting 'momentun'; did you mean 'mom",
        ),
        (
            {"norm": {"name": "batch", "train": True}},
            "no setting 'train'.*known: momentum, epsilon, axis_name, axis_ind",
        ),
        ({"norm": {"name": "batch", "scale_init": 1}}, "no setting 'scale_init'"),
        ({"norm": {"name": "layer"}}, "model.norm: no norm is called 'layer'; known: batch, group, none"),
        ({"norm": {"momentum": 0.9}}, "model.norm: no norm is called ''; known: batch, group, none"),
        ({"norm": None}, "model.norm: expected a key of NORMS, a mapping .* found None"),
        ({"conv": 3}, "model.conv: expected a key of CONVS"),
        ({"conv": "conv"}, "did you mean 'conv2d'"),
        ({"stem": len}, "model.stem: expected a key of STEMS"),
        ({"stem": {"name": "small", "width": 3}}, "model.stem: small has no setting 'width'"),
        ({"shortcut": {"name": "A", "stride": 3}}, "model.shortcut: A has no setting 'stride'"),
        ({"gate": "squeeze"}, "model.gate: no gate is called 'squeeze'; known: se"),
    ],
)
def test_unknown_names_and_settings_are_refused_with_the_known_ones(override, message):
    with pytest.raises(UserError, match=message):
        create_model("resnet20", num_classes=10, **override)
