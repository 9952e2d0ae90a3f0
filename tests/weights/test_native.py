"""Our own weight files, and `python -m resnet_jax.convert`."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import resnet_jax
from resnet_jax import UserError, convert, export, predict
from resnet_jax.checkpoint.arrays import digest
from resnet_jax.commands import make_console
from resnet_jax.config.train import train
from tests.runs import ROOT
from tests.tiny import tiny_config

QUIET = make_console(quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("exported") / "run"
    train(tiny_config(train__steps=24, train__ema_decay=0.9, parallel__devices=4), workdir, QUIET)
    return workdir


@pytest.fixture
def exported(run, tmp_path):
    convert.main([str(run), "--to", str(tmp_path / "run.safetensors")])
    return tmp_path / "run.safetensors"


def test_an_exported_run_is_the_run(run, exported):
    (model, variables), (other, found) = (resnet_jax.load_checkpoint(path) for path in (run, exported))
    images = jnp.ones((1, 8, 8, 1))
    np.testing.assert_array_equal(*(net.apply(variables, images, train=False) for net in (model, other)))
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    assert resnet_jax.preprocessing(exported) == resnet_jax.preprocessing(run) == resnet_jax.preprocessing(other)
    assert resnet_jax.load_card(exported).class_names == tuple("0123456789")


def test_averages_are_exported_on_request(run, tmp_path):
    convert.main([str(run), "--ema", "--to", str(tmp_path / "ema.safetensors")])
    _, expected = resnet_jax.load_checkpoint(run, ema=True)
    jax.tree.map(np.testing.assert_array_equal, resnet_jax.load_checkpoint(tmp_path / "ema.safetensors")[1], expected)


def test_names_of_torch_come_back_in(run, tmp_path):
    convert.main([str(run), "--names", "torch", "--to", str(tmp_path / "torch.safetensors")])
    _, expected = resnet_jax.load_checkpoint(run)
    _, found = resnet_jax.load_pretrained("tiny", tmp_path / "torch.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_runs_steps_and_files_are_loaded_from_a_url(run, exported):
    """In the memory's file system of fsspec; buckets are another of its kind."""
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(run), "/bucket/run", recursive=True)
    memory.put(str(exported), "/bucket/run.safetensors")
    first, *_, number = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    for step in (first, "best", "latest"):
        _, expected = resnet_jax.load_checkpoint(run, step)
        _, found = resnet_jax.load_checkpoint("memory://bucket/run", step)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    _, found = resnet_jax.load_checkpoint(f"memory://bucket/run/checkpoints/{number}")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    _, expected = resnet_jax.load_checkpoint(run)
    _, found = resnet_jax.load_checkpoint("memory://bucket/run.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert resnet_jax.preprocessing("memory://bucket/run") == resnet_jax.preprocessing(run)
    for url, message in (
        ("memory://bucket/none", "expected a run, the folder of a step or a .safetensors file, found none there"),
        ("nosuch://bucket/run", "nosuch://bucket/run: "),
    ):
        with pytest.raises(UserError, match=message) as error:
            resnet_jax.load_checkpoint(url)
        assert "\n" not in str(error.value)


def test_bfloat16_is_that_of_the_computation(run):
    model, variables = resnet_jax.load_checkpoint(run, dtype="bfloat16")
    images = jnp.ones((1, 8, 8, 1))
    _, activations = model.apply(variables, images, train=False, features=True)
    assert activations["stage2"].dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_a_flipped_bit_is_found(exported):
    content = bytearray(exported.read_bytes())
    content[-5] ^= 1
    exported.write_bytes(content)
    with pytest.raises(UserError, match="expected arrays with the digest in its header, found others: corrupt"):
        resnet_jax.load_checkpoint(exported)


def test_a_crafted_card_is_refused(exported):
    arrays, card = load_file(exported), resnet_jax.load_card(exported).to_json()
    zero = {**card, "model": {**card["model"], "norm": {"name": "group", "groups": 0}}}
    for crafted in ("[" * 100_000, "[]", "null", "{", json.dumps(zero)):
        save_file(arrays, exported, {"resnet_jax.card": crafted, "resnet_jax.digest": digest(arrays)})
        with pytest.raises(UserError, match="run.safetensors: expected a model card") as refused:
            resnet_jax.load_checkpoint(exported)
        assert "\n" not in str(refused.value)


def test_files_of_others_and_wrong_uses_are_refused_with_what_to_do(run, exported, tmp_path, capsys):
    convert.main([str(run), "--names", "torch", "--to", str(tmp_path / "torch.safetensors")])
    with pytest.raises(UserError, match="expected weights with a model card.*take --model NAME.*load_pretrained"):
        resnet_jax.load_checkpoint(tmp_path / "torch.safetensors")
    with pytest.raises(UserError, match="ema: .* holds one set of weights"):
        resnet_jax.load_checkpoint(exported, ema=True)
    with pytest.raises(UserError, match="expected a model from load_checkpoint or load_pretrained"):
        resnet_jax.preprocessing(resnet_jax.create_model("resnet20", num_classes=10))
    with pytest.raises(UserError, match="num_classes: expected the 10 of the weights.*head='new'"):
        resnet_jax.load_pretrained("tiny", tmp_path / "torch.safetensors", num_classes=3)
    with pytest.raises(UserError, match="of another shape|left over|missing"):
        resnet_jax.load_pretrained("resnet18", tmp_path / "torch.safetensors")
    for arguments, message in (
        ([str(run), "--to", str(exported)], "expected the name of a new file"),
        ([str(run), "--to", str(tmp_path / "no/x.safetensors")], "--to: expected a file in a folder that is there"),
        ([str(run), "--to", str(tmp_path / "x.pth")], "expected the name of a new .safetensors file"),
        ([str(run)], "expected a file to write, or --check"),
        ([str(run), "--check"], "expected weights of another library and --model NAME"),
        ([str(tmp_path / "torch.safetensors"), "--model", "tinny", "--to", "y.safetensors"], "did you mean 'tiny'"),
    ):
        with pytest.raises(SystemExit) as end:
            convert.main(arguments)
        error = capsys.readouterr().err
        assert end.value.code == 2 and message in error and error.count("\n") == 1


def test_a_new_head_has_the_classes_that_were_asked_for(run, tmp_path):
    convert.main([str(run), "--names", "torch", "--to", str(tmp_path / "torch.safetensors")])
    model, variables = resnet_jax.load_pretrained("tiny", tmp_path / "torch.safetensors", num_classes=3, head="new")
    assert model.num_classes == 3 and variables["params"]["fc"]["kernel"].shape == (8, 3)
    assert model.apply(variables, jnp.ones((1, 8, 8, 1)), train=False).shape == (1, 3)


def test_steps_and_averages_of_foreign_weights_are_refused(run, tmp_path, capsys):
    convert.main([str(run), "--names", "torch", "--to", str(tmp_path / "torch.safetensors")])
    Image.new("L", (8, 8)).save(tmp_path / "grey.png")
    for command, *others in ((convert, "--to", "x.safetensors"), (export, "x.onnx"), (predict, tmp_path / "grey.png")):
        for choice in (["--ema"], ["--step=latest"]):
            capsys.readouterr()
            with pytest.raises(SystemExit) as end:
                command.main([str(tmp_path / "torch.safetensors"), *map(str, others), "--model=tiny", *choice])
            error = capsys.readouterr().err
            assert end.value.code == 2 and "--step, --ema: expected" in error and error.count("\n") == 1


def test_a_full_disk_is_told_in_one_line(run, small_disk, capsys):
    with pytest.raises(SystemExit) as end:
        convert.main([str(run), "--to", str(small_disk(4096) / "x.safetensors")])
    error = capsys.readouterr().err
    assert end.value.code == 2 and "x.safetensors cannot be written: No space left on device" in error


def test_what_is_no_floating_point_dtype_is_refused(exported):
    for dtype in ("foo", "int32", object(), (1, 2), {"names": 1}, "f4,,("):
        with pytest.raises(UserError, match="dtype: expected a floating point dtype, found"):
            resnet_jax.load_checkpoint(exported, dtype=dtype)


@pytest.mark.slow
def test_loading_needs_no_other_framework_no_training_code_and_not_the_devices_that_wrote(run, exported):
    code = (
        f"import functools, sys; sys.path.insert(0, {str(ROOT)!r}); import resnet_jax, jax;"
        "from resnet_jax.models import MODELS, SHORTCUTS, STEMS; from resnet_jax.models.resnet import V1_BASIC, ResNet;"
        "tiny = {'stage_sizes': (1, 1), 'stem': STEMS['small'], 'shortcut': SHORTCUTS['A'], 'width': 4};"
        "MODELS['tiny'] = functools.partial(ResNet, **tiny, **V1_BASIC);"
        f"model, variables = resnet_jax.load_checkpoint({str(exported)!r}); print(jax.device_count());"
        f"model, variables = resnet_jax.load_checkpoint({str(run)!r});"
        "others = ('tensorflow', 'torch', 'keras', 'resnet_jax.training');"
        "print([name for name in sys.modules if name.startswith(others)])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": "/usr/bin"})
    assert process.stdout.splitlines() == ["1", "[]"], process.stderr
