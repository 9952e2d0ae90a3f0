import functools

import jax
import numpy as np
import pytest

from resnet_jax import UserError, create_model, fold_batchnorm
from tests.models.nets import KEY, random_variables

SMALL = {"stage_sizes": (2, 1), "width": 8}
NETS = {
    "resnet18": SMALL,
    "resnet50": SMALL,
    "resnet18d": SMALL,
    "seresnet50": SMALL,
    "preact_resnet50": SMALL,
    "resnetv2_50": SMALL,
    "keras_resnet50": SMALL,
    "keras_resnet50v2": SMALL,
    "flax_resnet50": SMALL,
    "wrn_16_8": SMALL,
    "preact_resnet110": {**SMALL, "downsample": "blur"},
    "resnet50_v1": {**SMALL, "conv": "standardized", "norm": {"name": "batch", "epsilon": 1e-3}},
    "vgg11_bn": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_a_folded_net_computes_the_same_without_a_batch_norm(name):
    model = create_model(name, num_classes=5, **NETS[name])
    images = jax.random.normal(KEY, (2, 65, 68, 3))
    variables = random_variables(jax.eval_shape(functools.partial(model.init, train=False), KEY, images))
    folded, without = fold_batchnorm(model, variables)
    assert without.keys() == {"params"}
    expected, found = (
        jax.jit(functools.partial(net.apply, train=False))(values, images)
        for net, values in ((model, variables), (folded, without))
    )
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    named = "/".join("/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(without))
    unfolded = {"preact_resnet50", "resnetv2_50", "keras_resnet50v2", "wrn_16_8", "preact_resnet110", "resnet50_v1"}
    assert ("scale" in named) == (name in unfolded)


def test_what_cannot_be_folded_or_trained_says_so():
    images = jax.random.normal(KEY, (2, 32, 32, 3))
    for name, overrides in (("vgg11", {}), ("resnet20", {**SMALL, "norm": {"name": "group", "groups": 4}})):
        model = create_model(name, num_classes=5, **overrides)
        shapes = jax.eval_shape(functools.partial(model.init, train=False), KEY, images)
        with pytest.raises(UserError, match="fold_batchnorm: expected a model with batch norms, found none"):
            fold_batchnorm(model, shapes)
    model = create_model("resnet20", num_classes=5, **SMALL)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), KEY, images)
    folded, params = fold_batchnorm(model, random_variables(shapes))
    with pytest.raises(UserError, match="fold_batchnorm: expected train=False"):
        folded.apply(params, images, train=True)
