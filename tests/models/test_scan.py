"""Nets whose equal blocks are one in a loop, and nets whose blocks are computed again: the same function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax import UserError, create_model, fold_batchnorm
from resnet_jax.models.conv import canonical_gradients
from resnet_jax.models.profile import profile
from resnet_jax.models.resnet import stride_in_last_block
from resnet_jax.models.scan import stack_blocks, unstack_blocks
from resnet_jax.training.diagnostics import lesions, make_layer_diagnostics
from resnet_jax.training.step import create_state, make_train_step
from tests.models.nets import KEY, random_variables, shapes_of

IMAGES = jax.random.normal(KEY, (4, 8, 8, 3))
BATCH = {"image": IMAGES, "target": jax.nn.one_hot(jnp.arange(4), 10)}


def net(name="resnet20", **overrides):
    return create_model(name, num_classes=10, **{"stage_sizes": (4, 3, 2), "width": 4, **overrides})


def variables_of(model):
    return random_variables(shapes_of(model, 8))


def trained(model, variables):
    """(loss, gradients, updated statistics) in training."""

    def loss(params):
        logits, updated = model.apply({**variables, "params": params}, IMAGES, train=True, mutable=["batch_stats"])
        return jnp.mean(optax.softmax_cross_entropy(logits, BATCH["target"])), updated

    (value, updated), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    return value, gradients, updated["batch_stats"]


def logits_of(model, variables):
    return jax.jit(functools.partial(model.apply, train=False))(variables, IMAGES)


def assert_equal_trees(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_close_trees(found, expected, tolerance=1e-4):
    def assert_close(found, expected):
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * max(1, np.abs(expected).max()))

    jax.tree.map(assert_close, found, expected)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("resnet20", {}),
        ("resnet164", {"gate": "se"}),
        ("preact_resnet110", {"shortcut": "C"}),
        ("preact_resnet164", {"strides": stride_in_last_block, "shortcut": "B"}),
        ("resnet20", {"shortcut": "highway", "conv": "standardized"}),
    ],
)
def test_a_scanned_net_has_the_logits_gradients_and_statistics_of_the_unrolled_one(name, overrides):
    model = net(name, stage_sizes=(4, 3), **overrides)
    variables = variables_of(model)
    scanned, stacked = stack_blocks(model, variables)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes_of(scanned, 8))
    assert stacked["params"]["stage1_blocks"]["conv1"]["kernel"].shape[0] in (2, 3)
    assert_close_trees(logits_of(scanned, stacked), logits_of(model, variables))
    loss, gradients, statistics = trained(model, variables)
    scanned_loss, *rest = trained(scanned, stacked)
    assert float(scanned_loss) == pytest.approx(float(loss), rel=1e-5)
    for found, expected in zip(rest, (gradients, statistics), strict=True):
        assert_close_trees(unstack_blocks(scanned, found)[1], expected, 1e-3)


def test_stacking_and_unstacking_are_exact_inverses_for_variables_and_states_of_optimizers():
    model, optimizer = net(), optax.adamw(0.1)
    variables = variables_of(model)
    state = jax.tree.map(lambda x: x + 1, optimizer.init(variables["params"]))
    scanned, stacked = stack_blocks(model, {"variables": variables, "state": state})
    assert (scanned.scan_blocks, stack_blocks(scanned, stacked)) == (True, (scanned, stacked))
    assert jax.tree.structure(stacked["state"]) == jax.tree.structure(
        jax.eval_shape(optimizer.init, stacked["variables"]["params"])
    )
    back, unstacked = unstack_blocks(scanned, stacked)
    assert back == model
    assert_equal_trees(unstacked, {"variables": variables, "state": state})
    vgg = create_model("vgg11", num_classes=10)
    assert stack_blocks(vgg, variables) == unstack_blocks(vgg, variables) == (vgg, variables)


def test_the_blocks_of_a_fresh_scanned_net_begin_with_different_weights_of_one_distribution():
    model = net(stage_sizes=(4,), scan_blocks=True, width=32)
    variables = jax.jit(functools.partial(model.init, train=False))(KEY, IMAGES)
    kernels = np.asarray(variables["params"]["stage1_blocks"]["conv1"]["kernel"])
    assert kernels.shape == (3, 3, 3, 32, 32)
    assert np.abs(kernels[0] - kernels[1]).min() > 0
    np.testing.assert_allclose(kernels.std((1, 2, 3, 4)), np.sqrt(2 / (9 * 32)), rtol=0.05)


def lowered(model):
    optimizer = optax.sgd(0.1)
    create = functools.partial(create_state, model, optimizer, with_ema=False)
    state = jax.eval_shape(create, KEY, KEY, IMAGES[:1])
    return jax.jit(make_train_step(model, optimizer)).lower(state, BATCH).as_text().count("\n")


def test_the_program_of_a_scanned_net_does_not_grow_with_its_depth():
    shallow, deep = (lowered(net(stage_sizes=(n, n), scan_blocks=True)) for n in (4, 8))
    assert abs(deep - shallow) <= 5
    assert lowered(net(stage_sizes=(8, 8))) > 1.5 * deep


@pytest.mark.parametrize("scan_blocks", [False, True])
def test_rematerialisation_changes_no_number_and_convolves_no_more(scan_blocks):
    model, remat = (net(stage_sizes=(3,), scan_blocks=scan_blocks, remat=remat) for remat in (False, True))
    variables = variables_of(model)
    assert_close_trees(trained(remat, variables), trained(model, variables))

    def counts(model):
        text = str(jax.make_jaxpr(functools.partial(trained, model))(variables))
        return text.count("conv_general_dilated["), text.count("rsqrt ")

    (convolutions, norms), (convolutions_again, norms_again) = counts(model), counts(remat)
    assert norms_again > norms and convolutions_again == convolutions


def test_costs_and_folding_see_the_unrolled_blocks_and_diagnostics_ask_for_them():
    model = net(stage_sizes=(3, 2))
    variables = variables_of(model)
    scanned, stacked = stack_blocks(model, variables)
    assert profile(scanned, (8, 8, 3)) == profile(model, (8, 8, 3)) == profile(model.clone(remat=True), (8, 8, 3))
    folded, expected = fold_batchnorm(scanned, stacked), fold_batchnorm(model, variables)
    assert folded[0] == expected[0]
    assert_equal_trees(folded[1], expected[1])
    layers = make_layer_diagnostics(scanned, mean=lambda tree: tree)
    for look in (lambda: list(lesions(scanned, stacked)), lambda: jax.eval_shape(layers, stacked, BATCH, KEY)):
        with pytest.raises(UserError, match="found scan_blocks; convert the net .* by models.scan.unstack_blocks"):
            look()


def test_stochastic_depth_cannot_be_scanned():
    with pytest.raises(UserError, match="model.stochastic_depth: expected 0 with scan_blocks, found 0.1"):
        shapes_of(net(scan_blocks=True, stochastic_depth=0.1), 8)


@pytest.mark.parametrize(
    ("size", "padding"), [((3, 3), [(1, 1), (1, 1)]), ((1, 1), [(0, 0), (0, 0)]), ((3, 5), [(0, 2), (1, 4)])]
)
def test_canonical_gradients_are_those_of_the_convolution(size, padding):
    x, kernel = jax.random.normal(KEY, (2, 7, 6, 3)), jax.random.normal(KEY, (*size, 3, 5))

    def convolve(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=dimensions)

    output, gradients = jax.vjp(convolve, x, kernel)
    gradient = jax.random.normal(jax.random.key(1), output.shape)
    assert_close_trees(canonical_gradients(x, kernel, gradient, padding), gradients(gradient), 1e-5)
