"""The six ResNets of Keras, block by block, on its JAX backend, where it is installed (CI installs it)."""

import os

import jax
import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
pytest.importorskip("keras")

from resnet_jax import UserError  # noqa: E402
from resnet_jax.weights.compare import compare  # noqa: E402
from resnet_jax.weights.pretrained import read_pretrained  # noqa: E402
from tests.weights.nets import images, keras_net  # noqa: E402

NAMES = {f"keras_resnet{depth}{v.lower()}": f"ResNet{depth}{v}" for depth in (50, 101, 152) for v in ("", "V2")}


@pytest.mark.parametrize("name", NAMES)
def test_every_block_and_the_logits_are_keras(name, tmp_path):
    keras_net(NAMES[name], 7, (64, 65, 3)).save_weights(tmp_path / "net.weights.h5")
    loaded = read_pretrained(name, tmp_path / "net.weights.h5")
    with jax.numpy_rank_promotion("allow"):  # Keras needs it
        differences = compare(loaded, images((64, 65)))
    assert [d for d in differences if not d.relative <= 1e-4] == []
    assert len(differences) == sum(loaded.model.stage_sizes) + 1


def test_legacy_files_and_those_of_keras_3_hold_the_same_weights(tmp_path):
    net = keras_net("ResNet50V2", 3, (64, 64, 3))
    net.save_weights(tmp_path / "net.weights.h5")
    net.save(tmp_path / "net.h5")
    new, legacy = (read_pretrained("keras_resnet50v2", tmp_path / f"net{end}.h5") for end in (".weights", ""))
    assert new.card.preprocessing["mean"] == [0.5] * 3
    jax.tree.map(np.testing.assert_array_equal, new.variables, legacy.variables)


def test_a_file_that_keras_takes_for_one_of_another_format_is_told_in_one_line(tmp_path):
    keras_net("ResNet50", 3, (64, 64, 3)).save_weights(tmp_path / "net.weights.h5")
    loaded = read_pretrained("keras_resnet50", (tmp_path / "net.weights.h5").rename(tmp_path / "net.hdf5"))
    with (
        jax.numpy_rank_promotion("allow"),
        pytest.raises(UserError, match="--check: Keras itself cannot load") as error,
    ):
        compare(loaded, images((64, 65)))
    assert "\n" not in str(error.value)


def test_the_nets_of_keras_are_others_than_those_of_the_papers(tmp_path):
    keras_net("ResNet50", 3, (64, 64, 3)).save_weights(tmp_path / "net.weights.h5")
    with pytest.raises(UserError, match="found resnet50: its paddings, strides or.*try keras_resnet50"):
        read_pretrained("resnet50", tmp_path / "net.weights.h5")
    preprocessing = read_pretrained("keras_resnet50", tmp_path / "net.weights.h5").card.preprocessing
    assert preprocessing["channel_order"] == "BGR"
