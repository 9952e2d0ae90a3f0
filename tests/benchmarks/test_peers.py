import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import ours
from benchmarks.peers import flax_baseline, flax_epochs, flax_process
from resnet_jax.errors import UserError
from resnet_jax.models import create_model


def count(params):
    return sum(x.size for x in jax.tree.leaves(params))


def our_count(name, size, num_classes):
    model = create_model(name, num_classes=num_classes)
    return count(jax.eval_shape(functools.partial(ours.random_state, model, size)).params)


def test_the_plain_flax_resnet50_has_the_weights_of_ours():
    model = flax_baseline.NETS["resnet50"](num_classes=1000)
    theirs = count(jax.eval_shape(functools.partial(flax_baseline.create_state, model, 224)).params)
    assert theirs == our_count("resnet50", 224, 1000) == 25_557_032


def test_nets_that_a_peer_lacks_are_refused():
    with pytest.raises(UserError, match="flax: expected one of resnet20, .*, found plain20"):
        flax_baseline.create_net("plain20", 10)
    pytest.importorskip("torch")
    from benchmarks.peers import torch_nets

    for name in ("plain20", "resnet21"):
        with pytest.raises(UserError, match=f"torch: expected .*, found {name}"):
            torch_nets.create_net(name, 10)


def test_the_torch_resnet20_has_the_weights_of_ours_and_folds():
    torch = pytest.importorskip("torch")
    from benchmarks.peers import torch_nets

    net = torch_nets.create_net("resnet20", 10)
    assert sum(p.numel() for p in net.parameters()) == our_count("resnet20", 32, 10)
    small = torch_nets.create_net("resnet18", 10, small_images=True)
    model = ours.small_image_model("resnet18", "float32")
    params = jax.eval_shape(functools.partial(ours.random_state, model, 32)).params
    assert sum(p.numel() for p in small.parameters()) == count(params)
    images = torch.randn(2, 3, 32, 32)
    folded = torch.fx.experimental.optimization.fuse(net.eval())
    with torch.no_grad():
        torch.testing.assert_close(folded(images), net(images), rtol=1e-4, atol=1e-4)


def crops_of(image, padding):
    """Every window of the padded image and its mirror image, as bytes."""
    height, width, _ = image.shape
    padded = np.pad((image.astype(np.float32) / 255 - 0.5) / 0.25, ((padding, padding), (padding, padding), (0, 0)))
    offsets = range(2 * padding + 1)
    windows = [padded[top : top + height, left : left + width] for top in offsets for left in offsets]
    return np.array([*windows, *(window[:, ::-1] for window in windows)])


def is_augmented(images, augmented):
    """Each is one of the crops of its image, and not all are the same."""
    found = [np.abs(crops_of(old, 1) - new).max(axis=(1, 2, 3)) for old, new in zip(images, augmented, strict=True)]
    return max(distances.min() for distances in found) < 1e-5 and len({d.argmin() for d in found}) > 4


def test_peers_augment_as_ours_do():
    images, _ = ours.small_images(64)
    images = images[:, :6, :5]
    assert is_augmented(images, flax_epochs.augment(np.random.default_rng(0), images, padding=1))
    torch = pytest.importorskip("torch")
    from benchmarks.peers import torch_epochs

    assert is_augmented(images, torch_epochs.augment(torch.tensor(images), padding=1).permute(0, 2, 3, 1).numpy())


def test_a_program_of_small_images_trains_every_replica_as_it_trains_alone():
    data = ours.small_images(32)
    model = create_model("resnet20", num_classes=10, stage_sizes=(1, 1), width=4)
    keys = jax.random.split(jax.random.key(0), 2)
    state = functools.partial(ours.random_state, model, 32)
    many, one = (ours.small_image_program(model, *data, 8, each) for each in (keys, keys[1]))
    states = many.parallel.replicate(jax.vmap(state)(jnp.arange(2)))
    _, together = many.train_steps(1)(states, many.inputs(0))
    _, alone = one.train_steps(1)(one.parallel.replicate(state(1)), one.inputs(0))
    np.testing.assert_allclose(together["loss"][1], alone["loss"], rtol=1e-5)
    assert together["loss"][0] != together["loss"][1]


@pytest.mark.slow
def test_the_plain_flax_net_trains_in_a_process_of_its_own_and_its_end_is_noticed(capfd):
    train = flax_process.training("resnet20", 8, 2, "float32", num_classes=10, steps=1)
    train()
    train()
    fails = flax_process.training("resnet0", 8, 2, "float32", num_classes=10, steps=1)
    with pytest.raises(UserError, match="the plain Flax net ended with status 2; its error is above"):
        fails()
    assert "error: flax: expected one of" in capfd.readouterr().err
