"""Models as StableHLO programs: the command, the file, and the reader that needs no model code."""

import functools
import io
import json
import os
import re
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import UserError, load_checkpoint, load_data, load_exported
from resnet_jax.checkpoint.card import ModelCard
from resnet_jax.evaluation import exports
from resnet_jax.evaluation.exported import pack
from resnet_jax.export import main
from tests.evaluation.programs import COLOUR, GREY, random_source
from tests.runs import ROOT

GOLDEN = ROOT / "tests" / "golden" / "v1" / "tiny.stablehlo"


def write(path, source, platforms=exports.DEFAULT_PLATFORMS):
    exports.write_export(path, "stablehlo", source, platforms)
    return load_exported(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("exports") / "tiny.stablehlo"
    write(path, random_source(uint8=True))
    return path


@pytest.fixture
def broken(file, tmp_path):
    """A function that writes a copy of the file with other entries, and gives its path."""

    def write_copy(**changes):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.stablehlo"
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                content = changes.get(name.partition(".")[0], old.read(name))
                if content is not None:
                    new.writestr(name, content)
        return path

    return write_copy


def test_a_program_gives_the_models_logits_in_batches_of_any_size(tmp_path):
    source = random_source()
    exported = write(tmp_path / "tiny.stablehlo", source)
    images = np.random.default_rng(3).normal(size=(7, 8, 8, 1)).astype(np.float32)
    for size in (1, 2, 7):
        own = source.model.apply(source.variables, images[:size], train=False)
        np.testing.assert_allclose(exported(images[:size]), own, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(exported(exported.sample_inputs), exported.sample_logits, rtol=1e-5, atol=1e-6)
    assert exported.exported.platforms == ("cpu", "cuda", "tpu")
    assert ModelCard.from_json(exported.card) == source.card


@pytest.mark.parametrize(
    ("preprocessing", "settings"),
    [
        (GREY, {}),
        (GREY, {"dtype": "bfloat16"}),
        ({**COLOUR, "channel_order": "BGR"}, {}),
        ({**COLOUR, "resize": 11}, {}),
        ({**GREY, "mean_image": [[[0.2], [0.7]] * 4] * 8}, {}),
        pytest.param(COLOUR, {"name": "vgg11", "size": 32}, marks=pytest.mark.slow),
    ],
    ids=["grey", "bfloat16", "BGR", "resized", "mean image", "VGG"],
)
def test_preprocessing_inside_a_program_is_exactly_that_outside(tmp_path, preprocessing, settings):
    source = random_source(uint8=True, preprocessing=preprocessing, **settings)
    exported = write(tmp_path / "program.jaxexport", source)
    preprocess = source.card.create_preprocessing()
    views = np.random.default_rng(4).integers(0, 256, (4, *preprocess.view_shape), np.uint8)
    model = jax.jit(functools.partial(source.model.apply, train=False))
    outside = model(source.variables, preprocess(views))
    np.testing.assert_array_equal(exported(views), outside)


def test_the_command_exports_the_weights_that_it_is_asked_for(finished, tmp_path, capsys):
    run, images = finished[0], np.asarray(load_data(finished[0])[0][:20])
    for flags, weights in (((), {"step": "best"}), (("--step", "latest", "--ema"), {"step": "latest", "ema": True})):
        out = tmp_path / f"{len(flags)}.stablehlo"
        main([str(run), str(out), *flags, "--platforms", "cpu"])
        assert capsys.readouterr().out.startswith(f"wrote {out}, the model's logits to ")
        model, variables = load_checkpoint(run, **weights)
        own = model.apply(variables, images, train=False)
        exported = load_exported(out)
        np.testing.assert_allclose(exported(images), own, rtol=1e-4, atol=1e-5)
        assert exported.exported.platforms == ("cpu",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["taken.stablehlo"], "expected the name of a new file, found taken.stablehlo; take another name"),
        (["out.bin"], "expected a name that ends in .stablehlo, .jaxexport, .onnx, or --format, found out.bin"),
        (["nowhere/out.onnx"], "expected a file in a folder that is there, found no "),
        (["out.stablehlo", "--platforms=cpu,cudaa"], "--platforms: there is no 'cudaa'; did you mean 'cuda'?"),
        (["out.stablehlo", "--platforms=tpu"], "--platforms: expected cpu among them, to check the file here, found"),
    ],
)
def test_a_command_that_cannot_be_done_ends_with_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.stablehlo").write_text("mine")
    with pytest.raises(SystemExit) as end:
        main(["run", *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and message in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["taken.stablehlo"]
    assert (tmp_path / "taken.stablehlo").read_text() == "mine"


def test_a_file_that_gives_other_logits_is_removed_and_ends_the_command_with_status_3(
    finished, tmp_path, monkeypatch, capsys
):
    other = random_source(size=8, num_classes=10)
    exports.write_export(tmp_path / "other.stablehlo", "stablehlo", other, ("cpu",))
    content = (tmp_path / "other.stablehlo").read_bytes()
    monkeypatch.setattr(exports, "write_bytes", lambda path, _: path.write_bytes(content))
    with pytest.raises(SystemExit) as end:
        main([str(finished[0]), str(tmp_path / "out.stablehlo")])
    assert end.value.code == 3 and not (tmp_path / "out.stablehlo").exists()
    assert "expected the model's logits to 1e-05 relative, found a difference of " in capsys.readouterr().err


def test_a_model_that_gives_no_numbers_is_not_exported(tmp_path):
    source = random_source()
    source.variables["params"]["fc"]["bias"][0] = np.nan
    with pytest.raises(exports.WrongExport, match="found a difference of nan"):
        write(tmp_path / "out.stablehlo", source)
    assert not list(tmp_path.iterdir())


_ALONE = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name.startswith(("flax", "orbax", "optax", "resnet_jax.models", "resnet_jax.data")):
            raise ImportError(f"no {name} here")

sys.meta_path.insert(0, Refuse())
import numpy, resnet_jax
exported = resnet_jax.load_exported(sys.argv[1])
logits = exported(exported.sample_inputs)
numpy.testing.assert_allclose(logits, exported.sample_logits, rtol=1e-5, atol=1e-6)
print(logits.shape, exported.card["model"]["name"])
"""


def test_a_program_needs_neither_flax_nor_the_code_of_the_model(file, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", _ALONE, file], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert process.stdout == "(3, 5) tiny\n", process.stderr


def test_images_of_another_shape_or_dtype_are_refused(file):
    exported = load_exported(file)
    for images in (np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 1), np.float32), np.zeros((8, 8, 1), np.uint8)):
        with pytest.raises(UserError, match=r"images: expected uint8 \(b, 8, 8, 1\), found \w+ \("):
            exported(images)


def test_a_program_for_other_devices_says_so(tmp_path):
    shape = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), 2), jnp.float32)
    program = jax.export.export(jax.jit(lambda weights, x: jnp.sin(x)), platforms=("tpu",))({}, shape)
    zeros = np.zeros((1, 2), np.float32)
    (tmp_path / "tpu").write_bytes(pack(program, {}, {}, zeros, zeros))
    with pytest.raises(UserError, match="expected a device of tpu, found cpu"):
        load_exported(tmp_path / "tpu")(zeros)


def test_a_program_that_calls_out_of_itself_is_refused(tmp_path):
    shape = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), 2, 2), jnp.float32)
    program = jax.export.export(jax.jit(lambda weights, x: jnp.linalg.qr(x)[0]), platforms=("cpu",))({}, shape)
    zeros = np.zeros((1, 2, 2), np.float32)
    (tmp_path / "qr").write_bytes(pack(program, {}, {}, zeros, zeros))
    with pytest.raises(UserError, match="calls nothing outside itself, found custom calls in it; nothing was executed"):
        load_exported(tmp_path / "qr")


def test_files_that_end_early_are_refused(file, tmp_path):
    content = file.read_bytes()
    for size in (0, 1, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "short").write_bytes(content[:size])
        with pytest.raises(UserError, match="/short: expected .*, found .*(empty|truncated)") as refused:
            load_exported(tmp_path / "short")
        assert "\n" not in str(refused.value)


def test_a_byte_that_changed_is_found_or_changes_nothing(file, tmp_path):
    content, whole = file.read_bytes(), load_exported(file)
    for position in np.random.default_rng(5).integers(0, len(content), 60):
        changed = bytearray(content)
        changed[position] ^= 0x11
        (tmp_path / "changed").write_bytes(changed)
        try:
            exported = load_exported(tmp_path / "changed")
        except UserError as error:
            assert "\n" not in str(error)
        else:  # a date, or another field of the archive that means nothing here
            assert exported.card == whole.card
            np.testing.assert_array_equal(exported(whole.sample_inputs), whole(whole.sample_inputs))


def test_files_of_other_kinds_are_refused(tmp_path, broken):
    (tmp_path / "text").write_text("no program")
    np.savez(tmp_path / "arrays.npz", zeros=np.zeros(3))
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}]), allow_pickle=True)
    for path, message in (
        (tmp_path / "nothing", "found no file"),
        (tmp_path, "found no file"),
        (tmp_path / "text", "found a corrupt or truncated one"),
        (tmp_path / "arrays.npz", "found an archive without about.json, program.jaxexport, sample_inputs.npy, "),
        (broken(sample_logits=None), "found an archive without sample_logits.npy"),
        (broken(about=json.dumps({"format": 2, "card": {}})), "expected a program of format 1, found format '2'"),
        (broken(about="[]"), "expected a program of format 1, found format 'None'"),
        (broken(about='{"format": 1}'), "found one without a model card"),
        (broken(about="{"), "found a corrupt or truncated one"),
        (broken(program=b""), "found a corrupt or truncated one"),
        (broken(program=b"x" * 500), "found a corrupt or truncated one"),
        (broken(sample_inputs=pickled.getvalue()), "found pickled objects; nothing was executed"),
    ):
        with pytest.raises(UserError, match=re.escape(message)) as refused:
            load_exported(path)
        assert "\n" not in str(refused.value)


def test_arrays_that_do_not_fit_the_program_are_refused(broken):
    for name, array in (
        ("sample_inputs", np.zeros((3, 9, 8, 1), np.uint8)),
        ("sample_inputs", np.zeros((3, 8, 8, 1), np.float32)),
        ("sample_logits", np.zeros((3, 6), np.float32)),
        ("weights/params/fc/bias", np.zeros(6, np.float32)),
        ("weights/params/fc/bias", None),
    ):
        file = io.BytesIO()
        np.save(file, array)
        content = None if array is None else file.getvalue()
        with pytest.raises(UserError, match="expected a program of the weights and samples in the file, found one of"):
            load_exported(broken(**{name: content}))


def test_a_file_of_format_1_still_gives_its_logits():
    exported = load_exported(GOLDEN)
    np.testing.assert_allclose(exported(exported.sample_inputs), exported.sample_logits, rtol=1e-5, atol=1e-6)
    assert exported.card["class_names"] == list("abcde")
