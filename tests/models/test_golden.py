"""Golden nets: names, shapes, initial values and outputs that stored weights depend on.

A failure means that weights stored by an earlier version no longer fit, start differently or compute something else. If
that is intended, say so in the commit and write the file again: python -m tests.models.test_golden
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import create_model

FOLDER = pathlib.Path(__file__).parent.parent / "golden" / "models"
SMALL = {"stage_sizes": (1, 1), "width": 8, "stem": "small"}
NETS = {
    "resnet20_projections_blur": ("resnet20", {**SMALL, "shortcut": "C", "downsample": "blur"}),
    "resnet50_v1": ("resnet50_v1", SMALL),
    "preact_resnet18_highway": ("preact_resnet18", {**SMALL, "shortcut": "highway", "norm": "none"}),
    "seresnet18_standardized_d": (
        "seresnet18",
        {**SMALL, "conv": "standardized", "shortcut": "D", "norm": {"name": "group", "groups": 4}},
    ),
    "keras_resnet50v2": ("keras_resnet50v2", SMALL),
    "preact_resnet50_skipinit": ("preact_resnet50", {**SMALL, "shortcut": "skipinit"}),
}
SHAPES_ALONE = (
    "resnet18",
    "resnet50",
    "preact_resnet18",
    "preact_resnet50",
    "plain18",
    "resnet20",
    "vgg11",
    "vgg11_bn",
    "wide_resnet50_2",
    "wrn_16_8",
    "resnext50_32x4d",
    "resnet18d",
    "seresnet50",
    "resnet50_gn",
    "resnetv2_50",
    "resnetv2_50x1_bit",
    "keras_resnet50",
    "keras_resnet50v2",
    "flax_resnet50",
    "big_vision_resnet50",
)


def tree_of(variables) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [*leaf.shape, str(leaf.dtype)] for path, leaf in leaves
    }


def shapes_alone(name) -> dict:
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    init = functools.partial(create_model(name, num_classes=1000).init, train=False)
    return {"tree": tree_of(jax.eval_shape(init, jax.random.key(0), images))}


def looked_at(name) -> dict:
    """The tree of a net, the mean magnitude of each initial leaf, and logits in training and evaluation."""
    model_name, overrides = NETS[name]
    model = create_model(model_name, num_classes=3, **overrides)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)

    @jax.jit
    def logits(variables):
        trained, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return {"train": trained, "eval": model.apply(variables, images, train=False)}

    means = [float(np.abs(leaf).mean()) for leaf in jax.tree.leaves(jax.device_get(variables))]
    outputs = {mode: np.asarray(value).tolist() for mode, value in logits(variables).items()}
    return {"tree": tree_of(variables), "mean_magnitudes": means, "logits": outputs}


@pytest.mark.parametrize("name", NETS)
def test_a_small_net_has_the_names_initial_values_and_outputs_that_it_always_had(name):
    golden, found = json.loads((FOLDER / f"{name}.json").read_text()), looked_at(name)
    assert found["tree"] == golden["tree"]
    np.testing.assert_allclose(found["mean_magnitudes"], golden["mean_magnitudes"], rtol=1e-5)
    for mode, logits in golden["logits"].items():
        np.testing.assert_allclose(found["logits"][mode], logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES_ALONE)
def test_a_net_has_the_names_and_shapes_that_it_always_had(name):
    assert shapes_alone(name) == json.loads((FOLDER / f"{name}_shapes.json").read_text())


if __name__ == "__main__":
    golden = {name: looked_at(name) for name in NETS}
    golden |= {f"{name}_shapes": shapes_alone(name) for name in SHAPES_ALONE}
    for name, content in golden.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(content) + "\n")
