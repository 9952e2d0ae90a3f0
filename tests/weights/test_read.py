"""Weight files of every known format, whole and broken. What torch writes is in `test_torch_files.py`."""

import io
import json
import shutil
import sys
import zipfile

import flax.training.checkpoints
import h5py
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import serialization

from resnet_jax.errors import UserError
from resnet_jax.weights.read import read_arrays
from tests.weights.bounds import refused
from tests.weights.files import (
    Call,
    Global,
    Persistent,
    pickled,
    tensor,
    tensors,
    write_legacy,
    write_state_dict,
    write_zip,
    write_zip_pickle,
)

ARRAYS = {
    "conv1.weight": np.random.RandomState(0).randn(4, 3, 3, 3).astype(np.float32),
    "fc.bias": np.linspace(-1, 1, 5).astype(ml_dtypes.bfloat16),
    "fc.weight": np.linspace(-1, 1, 10).reshape(5, 2).astype(np.float16),
    "bn1.num_batches_tracked": np.array(2**40, np.int64),
}
TREE = {
    "step": np.array(7),
    "params": {
        "conv_init": {"kernel": ARRAYS["conv1.weight"]},
        "head": {"bias": ARRAYS["fc.bias"], "kernel": ARRAYS["fc.weight"]},
    },
}
FLAT = {
    "step": TREE["step"],
    "params/conv_init/kernel": ARRAYS["conv1.weight"],
    "params/head/bias": ARRAYS["fc.bias"],
    "params/head/kernel": ARRAYS["fc.weight"],
}


def same(arrays, expected):
    assert sorted(arrays) == sorted(expected)
    for name, array in expected.items():
        found = arrays[name]
        assert isinstance(found, np.ndarray) and found.dtype == array.dtype and found.shape == array.shape, name
        assert found.tobytes() == array.tobytes(), name
    return True


def write_torch_legacy(path):
    write_legacy(path, tensors(ARRAYS, legacy=True), {str(i): array for i, array in enumerate(ARRAYS.values())})


def write_keras_legacy(path, group=None):
    with h5py.File(path, "w") as file:
        root = file.create_group(group) if group else file
        file.attrs["model_config"] = '{"class_name": "Lambda"}'
        root.attrs["layer_names"] = [b"conv1_conv", b"relu"]
        layer = root.create_group("conv1_conv")
        layer.attrs["weight_names"] = [b"conv1_conv/kernel:0", b"conv1_conv/bias:0"]
        layer["conv1_conv/kernel:0"] = ARRAYS["conv1.weight"]
        layer["conv1_conv/bias:0"] = ARRAYS["fc.weight"]
        root.create_group("relu").attrs["weight_names"] = np.array([])


def write_keras_3(path):
    with h5py.File(path, "w") as file:
        file["layers/conv2d/vars/0"] = ARRAYS["conv1.weight"]
        file["layers/dense/vars/0"] = ARRAYS["fc.bias"]
        file["layers/dense/vars/0"].attrs["dtype"] = "bfloat16"
        file.create_group("layers/relu/vars")


WRITERS = {
    "torch": lambda path: write_state_dict(path, ARRAYS),
    "legacy": write_torch_legacy,
    "safetensors": lambda path: safetensors.numpy.save_file(ARRAYS, path),
    "h5": write_keras_legacy,
    "keras 3": write_keras_3,
    "npz": lambda path: np.savez(path.open("wb"), **ARRAYS),
    "flax": lambda path: path.write_bytes(serialization.msgpack_serialize(TREE)),
}


@pytest.mark.parametrize("name", ["weights", "weights.pth", "weights.h5"])
@pytest.mark.parametrize("kind", ["torch", "legacy", "npz", "safetensors"])
def test_a_file_is_recognised_by_its_content_whatever_its_name(tmp_path, kind, name):
    WRITERS[kind](tmp_path / name)
    found = read_arrays(str(tmp_path / name))
    assert found.kind == {"legacy": "torch"}.get(kind, kind) and same(found.arrays, ARRAYS) and found.metadata == {}


def test_arrays_of_torch_are_views_that_cannot_be_written(tmp_path):
    write_state_dict(tmp_path / "weights.pth", ARRAYS)
    array = read_arrays(tmp_path / "weights.pth").arrays["conv1.weight"]
    assert not array.flags.owndata and not array.flags.writeable


@pytest.mark.parametrize("key", ["state_dict_ema", "state_dict", "model_state_dict", "model"])
def test_a_state_dict_in_a_training_checkpoint_is_found(tmp_path, key):
    parallel = {f"module.{name}": value for name, value in tensors(ARRAYS).items()}
    contents = {str(i): array.tobytes() for i, array in enumerate(ARRAYS.values())}
    write_zip(tmp_path / "last.pth", {"epoch": 3, key: parallel, "optimizer": {"state": {0: None}}}, contents)
    assert same(read_arrays(tmp_path / "last.pth").arrays, ARRAYS)


def test_a_legacy_storage_may_be_a_part_of_another(tmp_path):
    storage = Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 16, ("1", 4, 8)))
    state = {"w": Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, 1, (3,), (2,), False, {}))}
    write_legacy(tmp_path / "w.pth", state, {"0": np.arange(16, dtype=np.float32)})
    assert read_arrays(tmp_path / "w.pth").arrays["w"].tolist() == [5, 7, 9]


def test_names_that_python_2_wrote_are_read(tmp_path):
    pickle = pickled(tensors(ARRAYS)).replace(b"X\x07\0\0\0fc.bias", b"U\x07fc.bias")
    write_zip_pickle(tmp_path / "w.pth", pickle, {str(i): array.tobytes() for i, array in enumerate(ARRAYS.values())})
    assert b"U\x07fc.bias" in (tmp_path / "w.pth").read_bytes() and same(read_arrays(tmp_path / "w.pth").arrays, ARRAYS)


def test_averaged_weights_come_before_those_of_the_last_step(tmp_path):
    last = {"w": tensor("0", "float32", 2, 0, (2,), (1,))}
    averaged = {"w": tensor("1", "float32", 2, 0, (2,), (1,))}
    contents = {"0": np.zeros(2, np.float32).tobytes(), "1": np.ones(2, np.float32).tobytes()}
    write_zip(tmp_path / "last.pth", {"state_dict": last, "state_dict_ema": averaged}, contents)
    assert read_arrays(tmp_path / "last.pth").arrays["w"].tolist() == [1, 1]


def test_metadata_of_safetensors_are_kept(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "w.safetensors", metadata={"architecture": "resnet50"})
    assert read_arrays(tmp_path / "w.safetensors").metadata == {"architecture": "resnet50"}


@pytest.mark.parametrize("group", [None, "model_weights"])
def test_legacy_keras_weights_have_the_names_that_keras_stored(tmp_path, group):
    write_keras_legacy(tmp_path / "w.h5", group)
    kind, arrays, _ = read_arrays(tmp_path / "w.h5")
    assert kind == "keras"
    assert same(arrays, {"conv1_conv/kernel:0": ARRAYS["conv1.weight"], "conv1_conv/bias:0": ARRAYS["fc.weight"]})


def test_keras_3_weights_have_their_paths(tmp_path):
    write_keras_3(tmp_path / "w.weights.h5")
    kind, arrays, _ = read_arrays(tmp_path / "w.weights.h5")
    expected = {"layers/conv2d/vars/0": ARRAYS["conv1.weight"], "layers/dense/vars/0": ARRAYS["fc.bias"]}
    assert kind == "keras" and same(arrays, expected)


def test_h5_files_without_h5py_say_what_to_install(tmp_path, monkeypatch):
    write_keras_3(tmp_path / "w.weights.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert refused(tmp_path / "w.weights.h5").endswith("run: pip install h5py")


def test_compressed_npz_files_with_folders_in_their_names_are_read(tmp_path):
    np.savez_compressed(tmp_path / "w.npz", **FLAT)
    assert same(read_arrays(tmp_path / "w.npz").arrays, FLAT)


@pytest.mark.parametrize("orbax", [True, False], ids=["orbax", "msgpack"])
def test_checkpoints_of_the_flax_example_have_their_paths(tmp_path, orbax):
    tree = {**TREE, "opt_state": {"0": None}}
    with flax.config.temp_flip_flag("use_orbax_checkpointing", orbax):
        path = flax.training.checkpoints.save_checkpoint(tmp_path.absolute(), tree, step=7)
    kind, arrays, _ = read_arrays(path)
    assert kind == "flax" and same(arrays, FLAT)


@pytest.mark.parametrize("folder", ["", "default"])
def test_an_orbax_folder_is_read_without_its_devices(tmp_path, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c" / folder, {"a": jnp.ones((2, 3)), "b": [jnp.zeros(2, jnp.bfloat16)]})
    expected = {"a": np.ones((2, 3), np.float32), "b/0": np.zeros(2, ml_dtypes.bfloat16)}
    assert same(read_arrays(tmp_path / "c").arrays, expected)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_truncated_file_is_one_line(tmp_path, kind):
    whole, path = tmp_path / "whole", tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pth")
    WRITERS[kind](whole)
    content = whole.read_bytes()
    lengths = {1, 2, 4, 8, 9, 16, 40, *np.linspace(1, len(content) - 1, 40).astype(int)}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        assert refused(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_flipped_byte_is_read_or_one_line(tmp_path, kind):
    """No format but torch's zip has checksums; no other exception comes out of any."""
    whole, path = tmp_path / "whole", tmp_path / "flipped"
    WRITERS[kind](whole)
    content, random = whole.read_bytes(), np.random.RandomState(1)
    for position in random.randint(0, len(content), 150):
        broken = bytearray(content)
        broken[position] ^= 1 << random.randint(8)
        path.write_bytes(broken)
        try:
            read_arrays(path)
        except UserError as error:
            assert str(error).isprintable()


def test_a_flipped_bit_in_a_storage_of_torch_is_found(tmp_path):
    write_state_dict(tmp_path / "w.pth", ARRAYS)
    content = bytearray((tmp_path / "w.pth").read_bytes())
    content[content.index(ARRAYS["conv1.weight"].tobytes()) + 5] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    assert "CRC-32" in refused(tmp_path / "w.pth")


def test_what_is_no_weight_file_is_told_the_known_formats(tmp_path):
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    found = {"empty.pth": "an empty file", "text.txt": "unknown content", "folder": "a folder that Orbax did not write"}
    found |= {"missing.pth": "No such file", "model.keras": "another zip archive"}
    for name, words in found.items():
        message = refused(tmp_path / name)
        assert words in message and "torch .pth, safetensors, Keras .h5 or .weights.h5, NumPy .npz" in message


def test_files_without_arrays_say_so(tmp_path):
    safetensors.numpy.save_file({}, tmp_path / "a")
    np.savez(tmp_path / "b.npz")
    h5py.File(tmp_path / "c", "w").close()
    write_zip(tmp_path / "d", {}, {})
    for name in "acd":
        assert "expected arrays, found none" in refused(tmp_path / name)
    assert refused(tmp_path / "b.npz")  # an archive of nothing is of no format


@pytest.mark.parametrize("value", [[1.0], "weights", {"epoch": 3}, {"w": None}, {3: None}])
def test_a_pickle_of_something_else_is_named(tmp_path, value):
    write_zip(tmp_path / "w.pth", value, {})
    assert "tensors" in refused(tmp_path / "w.pth")


def test_text_in_an_archive_is_no_weight(tmp_path):
    np.savez(tmp_path / "w.npz", names=np.array(["a", "b"]))
    assert "expected numbers in 'names', found dtype" in refused(tmp_path / "w.npz")


def test_a_broken_orbax_folder_is_one_line(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"a": jnp.ones((2, 3))})
    for name in ("manifest.ocdbt", "d", "_METADATA"):
        shutil.copytree(tmp_path / "c", tmp_path / name)
        if name == "d":
            shutil.rmtree(tmp_path / name / "d")
        else:
            (tmp_path / name / name).write_text(json.dumps({"tree_metadata": 3}))
        assert refused(tmp_path / name)


def test_bfloat16_of_npz_comes_back(tmp_path):
    """NumPy stores it as two bytes without a type."""
    buffer = io.BytesIO()
    np.savez(buffer, w=ARRAYS["fc.bias"])
    (tmp_path / "w.npz").write_bytes(buffer.getvalue())
    assert same(read_arrays(tmp_path / "w.npz").arrays, {"w": ARRAYS["fc.bias"]})
