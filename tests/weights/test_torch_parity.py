"""Every net of torchvision and timm that we have, block by block, where they are installed (CI installs them)."""

import argparse
import functools

import jax
import numpy as np
import pytest

from resnet_jax import UserError, convert, load_pretrained, preprocessing
from resnet_jax.weights.references import import_torchvision

torch = pytest.importorskip("torch")
import_torchvision()
pytest.importorskip("timm")

from resnet_jax.weights.compare import compare  # noqa: E402
from resnet_jax.weights.native import write_weights  # noqa: E402
from resnet_jax.weights.pretrained import read_pretrained  # noqa: E402
from resnet_jax.weights.sources import CONVENTIONS, convention, table_of  # noqa: E402
from resnet_jax.weights.trees import flatten, to_theirs  # noqa: E402
from tests.models.nets import PUBLISHED  # noqa: E402
from tests.weights.nets import images, torch_net  # noqa: E402

_COUNTS = PUBLISHED["parameter_counts"]
NAMES = [name for source, counts in _COUNTS.items() if source.startswith(("torchvision", "timm")) for name in counts]


def in_torch_names(model, variables):
    flat = flatten(variables)
    return to_theirs(jax.device_get(flat), table_of(model, flat, "torch").places(model, flat))


@pytest.fixture
def saved(tmp_path):
    def save(name, num_classes=7, channels=3):
        net = torch_net(name, num_classes, channels)
        torch.save(net.state_dict(), tmp_path / f"{name}.pth")
        return net, tmp_path / f"{name}.pth"

    return save


@pytest.mark.parametrize("name", NAMES)
def test_every_block_and_the_logits_are_torchs_and_the_weights_come_out_as_they_went_in(name, saved):
    net, path = saved(name)
    loaded = read_pretrained(name, path)
    differences = compare(loaded, images())
    assert [d for d in differences if not d.relative <= 1e-4] == []
    depth = sum(loaded.model.stage_sizes)
    assert len(differences) == depth + 1
    out = in_torch_names(loaded.model, loaded.variables)
    state = {key: value.numpy() for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert out.keys() == state.keys()
    assert all(out[key].tobytes() == value.tobytes() and out[key].shape == value.shape for key, value in state.items())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_gradients_of_the_loss_with_respect_to_the_input_are_torchs(name, saved):
    net, path = saved(name)
    model, variables = load_pretrained(name, path)
    x, labels = images(), np.array([1, 5])
    theirs = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    torch.nn.functional.cross_entropy(net(theirs), torch.tensor(labels)).backward()

    @jax.jit
    @functools.partial(jax.grad, argnums=0)
    def gradient(x):
        logits = model.apply(variables, x, train=False)
        return -jax.nn.log_softmax(logits)[np.arange(2), labels].mean()

    expected = theirs.grad.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(gradient(x), expected, atol=1e-3 * np.abs(expected).max())


def test_torch_loads_what_we_write_in_its_names(tmp_path, saved):
    from safetensors.torch import load_file

    net, path = saved("seresnet18", num_classes=3)
    card, model, variables = read_pretrained("seresnet18", path)[:3]
    variables = jax.tree.map(lambda x: x + 0.01, variables)
    write_weights(tmp_path / "out.safetensors", card, variables, "torch")
    net.load_state_dict(load_file(tmp_path / "out.safetensors"))
    with torch.no_grad():
        expected = net(torch.tensor(images()).permute(0, 3, 1, 2)).numpy()
    ours = jax.jit(functools.partial(model.apply, train=False))(variables, images())
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_bit_files_as_they_were_released_and_as_timm_writes_them_are_the_same_net(tmp_path):
    net = torch_net("resnetv2_50x1_bit", 7)
    torch.save(net.state_dict(), tmp_path / "timm.pth")
    np.savez(tmp_path / "released.npz", **released_bit(net.state_dict()))
    net.load_pretrained(str(tmp_path / "released.npz"))  # timm's own reading of these names
    loaded = read_pretrained("resnetv2_50x1_bit", tmp_path / "released.npz")
    with torch.no_grad():
        expected = net(torch.tensor(images()).permute(0, 3, 1, 2)).numpy()
    ours = jax.jit(functools.partial(loaded.model.apply, train=False))(loaded.variables, images())
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())
    assert loaded.card.preprocessing["mean"] == [0.5] * 3
    _, variables = load_pretrained("resnetv2_50x1_bit", tmp_path / "timm.pth")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def released_bit(state):
    """A state dict of timm under the names of https://github.com/google-research/big_transfer."""
    arrays = {}
    for name, tensor in state.items():
        *path, leaf = name.replace("stages.", "").split(".")
        if path[0] in ("stem", "head", "norm"):
            layer = {"stem": "root_block/standardized_conv2d", "head": "head/conv2d", "norm": "group_norm"}[path[0]]
        else:
            stage, _, block, part, *_ = path
            unit = f"block{int(stage) + 1}/unit{int(block) + 1:02}"
            kind = "group_norm" if part.startswith("norm") else "standardized_conv2d"
            layer = f"{unit}/a/proj/{kind}" if part == "downsample" else f"{unit}/{'abc'[int(part[-1]) - 1]}/{kind}"
        array = tensor.numpy()
        is_norm = "group_norm" in layer
        leaf = {"weight": "gamma" if is_norm else "kernel", "bias": "beta" if is_norm else "bias"}[leaf]
        arrays[f"resnet/{layer}/{leaf}"] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return arrays


def test_grey_nets_of_timm_keep_their_one_channel(saved):
    _, path = saved("resnet18d", channels=1)
    loaded = read_pretrained("resnet18d", path)
    assert loaded.card.input_shape == (224, 224, 1)
    assert all(d.relative <= 1e-4 for d in compare(loaded, images((64, 65), channels=1)))


def test_images_are_normalised_as_timm_does():
    """Of the weights that timm takes by default; others, like `ra4_e3600_r224_in1k`, may know other images."""
    import timm

    names = [name for name in NAMES if timm.is_model(name)]
    assert len(names) > 30
    for name in names:
        expected, found = timm.get_pretrained_cfg(name), CONVENTIONS[convention(name, "torch")]
        assert (tuple(found["mean"]), tuple(found["std"])) == (expected.mean, expected.std), name


def test_grey_nets_of_timm_are_checked_by_timm_where_torchvision_has_the_name_too(tmp_path):
    import timm

    torch.save(timm.create_model("resnet18", num_classes=7, in_chans=1).state_dict(), tmp_path / "grey.pth")
    loaded = read_pretrained("resnet18", tmp_path / "grey.pth")
    assert not any(d.diverges for d in compare(loaded, images((64, 65), channels=1)))


def test_checkpoints_of_training_are_checked_as_they_are_read(saved, tmp_path):
    net, _ = saved("resnet18")
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "last.pth.tar")
    assert not any(d.diverges for d in compare(read_pretrained("resnet18", tmp_path / "last.pth.tar"), images()))


def test_what_torch_cannot_load_is_told_in_one_line(saved, tmp_path, capsys):
    net, _ = saved("resnet18")
    state = {"state_dict": net.state_dict(), "args": argparse.Namespace(lr=0.1)}
    torch.save(state, tmp_path / "last.pth")
    with pytest.raises(SystemExit) as end:
        convert.main([str(tmp_path / "last.pth"), "--model", "resnet18", "--check"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and "--check: torch itself cannot load this file: " in error and error.count("\n") == 1


def test_the_first_block_that_diverges_is_named(saved):
    _, path = saved("resnet18")
    loaded = read_pretrained("resnet18", path)
    kernel = loaded.variables["params"]["stage2_block2"]["conv1"]["kernel"]
    loaded.variables["params"]["stage2_block2"]["conv1"]["kernel"] = kernel * 1.01
    differences = compare(loaded, images())
    assert next(d.name for d in differences if d.diverges) == "stage2_block2"
    assert [d.name for d in differences if not d.diverges] == ["stage1_block1", "stage1_block2", "stage2_block1"]


def test_padding_and_strides_of_other_libraries_would_give_other_outputs(saved):
    """The weights fit by name and shape, so the check must be of what is computed."""
    _, path = saved("resnet50")
    with pytest.raises(UserError, match="that computes what the nets of torchvision or timm do, found"):
        read_pretrained("flax_resnet50", path)
    right, wrong = read_pretrained("resnet50", path), read_pretrained("resnet50_v1", path, preprocessing="caffe")
    assert not any(d.diverges for d in compare(right, images()))
    wrong = wrong._replace(card=right.card)
    assert next(d.name for d in compare(wrong, images()) if d.diverges) == "stage2_block1"


def test_the_command_checks_a_net_block_by_block_and_says_which_cannot_be(saved, capsys, monkeypatch):
    _, path = saved("resnet50", num_classes=1000)
    convert.main([str(path), "--model", "resnet50", "--check", "--to", str(path.with_suffix(".safetensors"))])
    screen = capsys.readouterr().out
    assert "the same to 0.0001 of the largest output, in all 16 blocks and the logits" in screen
    assert "images 224 pixels, the central 0.875 of the short side, bilinear, RGB" in screen
    assert preprocessing(path.with_suffix(".safetensors")).class_names[207] == "golden retriever"
    monkeypatch.setattr("resnet_jax.weights.compare.TOLERANCE", 1e-9)
    with pytest.raises(SystemExit) as end:
        convert.main([str(path), "--model", "resnet50", "--check"])
    assert end.value.code == 3
    assert capsys.readouterr().err.startswith("error: stage1_block1 is the first to diverge")
