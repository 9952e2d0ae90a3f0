"""The reader of torch's files against torch itself, where it is installed (CI installs it)."""

import argparse
import collections
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from resnet_jax.errors import UserError  # noqa: E402
from resnet_jax.weights.read import read_arrays  # noqa: E402
from tests.models.test_torch_parity import torchvision  # noqa: E402

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value, path, zipped):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def same(arrays, expected):
    """Whether arrays equal tensors in names, dtypes, shapes and bits."""
    assert list(arrays) == list(expected)
    for name, tensor in expected.items():
        assert str(tensor.dtype) == f"torch.{arrays[name].dtype}" and arrays[name].shape == tuple(tensor.shape), name
        bits = tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
        assert np.array_equal(np.frombuffer(arrays[name].tobytes(), np.uint8), bits.numpy()), name
    return True


@FORMATS
def test_a_state_dict_of_torchvision_is_what_torch_reads(tmp_path, zipped):
    path = save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth", zipped)
    kind, arrays, metadata = read_arrays(path)
    assert (kind, metadata) == ("torch", {})
    assert same(arrays, torch.load(path, weights_only=True))


@FORMATS
def test_every_dtype_keeps_its_bits(tmp_path, zipped):
    names = "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
    state = {name: (torch.randn(3, 5) * 3).to(getattr(torch, name)) for name in names}
    assert same(read_arrays(save(state, tmp_path / "dtypes.pth", zipped)).arrays, state)


@FORMATS
def test_strided_and_shared_tensors_are_what_torch_reads(tmp_path, zipped):
    base = torch.arange(24.0).view(4, 6)
    state = {
        "base": base,
        "tied": base,
        "transposed": base.t(),
        "column": base[:, 2],
        "part": base[1:3, ::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base[2]),
    }
    assert same(read_arrays(save(state, tmp_path / "views.pth", zipped)).arrays, state)


@FORMATS
def test_a_training_checkpoint_gives_its_weights(tmp_path, zipped):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.ones(2, 3, 5, 5)).square().mean().backward()
    optimizer.step()

    checkpoint = {
        "epoch": 3,
        "arch": "tiny",
        "state_dict": torch.nn.DataParallel(net).state_dict(),
        "optimizer": optimizer.state_dict(),
        "milestones": collections.Counter([3]),
        "args": argparse.Namespace(lr=0.1, size=(3, 5), device=torch.device("cpu"), dtype=torch.float32),
    }
    arrays = read_arrays(save(checkpoint, tmp_path / "last.pth.tar", zipped)).arrays
    assert same(arrays, net.state_dict())


@FORMATS
def test_protocol_4_is_read(tmp_path, zipped):
    state = {"weight": torch.randn(2, 3)}
    path = tmp_path / "four.pth"
    torch.save(state, path, pickle_protocol=4, _use_new_zipfile_serialization=zipped)
    assert same(read_arrays(path).arrays, state)


def test_a_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"weight": torch.randn(2, 3)}, tmp_path / "plain.pth", True)
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_arrays(path).arrays, torch.load(path))


@FORMATS
def test_a_whole_model_is_refused_by_name(tmp_path, zipped):
    path = save(torch.nn.Linear(2, 3), tmp_path / "model.pth", zipped)
    with pytest.raises(UserError, match=r"'torch.nn.modules.linear.Linear'.* nothing was executed.*state_dict"):
        read_arrays(path)


@pytest.mark.filterwarnings("ignore")
def test_programs_and_tensors_that_are_not_dense_are_refused(tmp_path):
    program = torch.jit.script(torch.nn.Linear(2, 3))
    program.save(str(tmp_path / "program.pt"))
    with pytest.raises(UserError, match="TorchScript"):
        read_arrays(tmp_path / "program.pt")
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    for name, value in {"sparse": torch.eye(3).to_sparse(), "quantised": quantised}.items():
        with pytest.raises(UserError, match="expected dense tensors, found a sparse or quantised one"):
            read_arrays(save({"weight": value}, tmp_path / f"{name}.pth", True))


@pytest.mark.slow
@FORMATS
def test_reading_resnet50_takes_less_than_three_times_its_size(tmp_path, zipped):
    path = save(torchvision.models.resnet50().state_dict(), tmp_path / "resnet50.pth", zipped)
    code = (
        "import sys; from resource import *; from resnet_jax.weights.read import read_arrays;"
        "before = getrusage(RUSAGE_SELF).ru_maxrss; arrays = read_arrays(sys.argv[1]).arrays;"
        "sum(float(array.sum()) for array in arrays.values());"
        "print((getrusage(RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    output = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
    assert int(output) < 3 * path.stat().st_size
