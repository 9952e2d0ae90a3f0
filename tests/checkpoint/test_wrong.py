"""A checkpoint of another net or optimizer is refused with the difference, before its arrays are read."""

import functools

import jax
import numpy as np
import optax
import pytest

from resnet_jax import UserError, create_model
from resnet_jax.checkpoint import Checkpoints, arrays
from resnet_jax.models.blocks import BasicBlock, BottleneckBlock
from resnet_jax.training.optim import make_optimizer
from resnet_jax.training.run import checkpoint_items
from resnet_jax.training.step import create_state
from tests import tiny  # noqa: F401  (registers the tiny net)


def items(model="tiny", optimizer="sgd", ema=True, channels=1, **settings):
    """Shapes and dtypes of what a run saves."""
    net = create_model(model, **{"num_classes": 10, **settings})
    images = jax.ShapeDtypeStruct((1, 8, 8, channels), np.float32)
    make = functools.partial(create_state, net, make_optimizer(optimizer, 0.1, optax.constant_schedule), with_ema=ema)
    state = jax.eval_shape(lambda key, images: make(key, key, images), jax.random.key(0), images)
    return checkpoint_items(state)


def in_half(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float16) if x.dtype == np.float32 else x, tree)


WRONG = {
    "deeper": (items(stage_sizes=(2, 1)), "params.stage1_block2"),
    "shallower": (items(stage_sizes=(1,)), "stage2_block1"),
    "wider": (items(width=8), r"params.conv1.kernel: expected float32 \(3, 3, 1, 8\), found float32 \(3, 3, 1, 4\)"),
    "narrower": (items(width=2), "params.conv1.kernel"),
    "more classes": (items(num_classes=11), r"params.fc.bias: expected float32 \(11,\), found float32 \(10,\)"),
    "fewer classes": (items(num_classes=2), "params.fc.kernel"),
    "colour": (items(channels=3), r"params.conv1.kernel: expected float32 \(3, 3, 3, 4\)"),
    "another block": (items(block=BottleneckBlock), "conv3"),
    "another shortcut": (items(shortcut="B"), "downsample_conv.kernel: expected float32 .*, found nothing"),
    "another norm": (
        items(norm={"name": "group", "groups": 2}),
        "batch_stats.bn1.mean: expected nothing, found float32",
    ),
    "no norm": (items(norm={"name": "none"}), "batch_stats.bn1.mean: expected nothing"),
    "half precision": ({name: in_half(tree) for name, tree in items().items()}, "expected float16 .* found float32"),
    "another optimizer": (items(optimizer="adamw"), r"opt_state.*: expected float32 .*, found nothing"),
    "no momentum": (
        {**items(), "optimizer": {"opt_state": (), "step": items()["optimizer"]["step"]}},
        "opt_state.*: expected nothing, found float32",
    ),
    "no moving average": (items(ema=False), "ema.batch_stats.bn1.mean: expected nothing, found float32"),
    "another net": (items(model="resnet20"), "params.stage1_block2"),
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    saved = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), items(block=BasicBlock))
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, saved, metrics=None, notes={})
    return folder


def test_the_right_one_is_restored(workdir):
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.restore_latest(items())[0] == 1


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_checkpoint_is_refused_with_the_difference(workdir, wrong, monkeypatch):
    monkeypatch.setattr(arrays, "read_step", lambda *_: pytest.fail("arrays were read"))
    like, message = WRONG[wrong]
    with Checkpoints(workdir) as checkpoints, pytest.raises(UserError, match=f"does not fit this (?s:.*){message}"):
        checkpoints.restore_latest(like)
    assert checkpoints.steps() == [1] and len(WRONG) >= 15
