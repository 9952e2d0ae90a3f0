"""Models as ONNX programs, run in onnxruntime."""

import base64
import io
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import UserError, load_checkpoint, load_data
from resnet_jax.checkpoint.card import ModelCard
from resnet_jax.evaluation import exports
from resnet_jax.evaluation.onnx_files import to_onnx
from resnet_jax.export import main
from tests.evaluation.programs import COLOUR, GREY, random_source

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")

_STAGES = {"stage_sizes": (1, 1, 1, 1), "width": 8}
_SMALL = {"stage_sizes": (1, 1, 1), "width": 8}
_GROUPS = {"norm": {"name": "group", "groups": 4}}
# One of each kind, narrow; the sizes leave odd numbers of pixels to most strides.
NETS = {
    "resnet18": {"name": "resnet18", **_STAGES},
    "resnet50": {"name": "resnet50", **_STAGES},
    "resnext": {"name": "resnext50_32x4d", "groups": 4, "base_width": 16, **_STAGES},
    "gated": {"name": "seresnet18", **_STAGES},
    "group norm": {"name": "resnet50_gn", **_STAGES, **_GROUPS},
    "BiT": {"name": "resnetv2_50x1_bit", **_STAGES, **_GROUPS},
    "big_vision": {"name": "big_vision_resnet50", **_STAGES, **_GROUPS},
    "deep stem": {"name": "resnet18d", **_STAGES},
    "pre-activation": {"name": "preact_resnet18", **_STAGES},
    "pre-activation of timm": {"name": "resnetv2_50", **_STAGES},
    "Keras": {"name": "keras_resnet50v2", **_STAGES},
    "Flax": {"name": "flax_resnet18", **_STAGES},
    "blur": {"name": "resnet18", "downsample": "blur", **_STAGES},
    "CIFAR": {"name": "resnet20", **_SMALL},
    "highway": {"name": "resnet20", "shortcut": "highway", **_SMALL},
    "wide": {"name": "wrn_16_8", **_SMALL},
    "no norm": {"name": "resnet20", "norm": "none", "shortcut": "skipinit", **_SMALL},
    "VGG": {"name": "vgg11_bn", "size": 39},
}


def run(path, images):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["logits"], {"images": images})[0]


def metadata(path):
    return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the stem shrinks")
@pytest.mark.parametrize("settings", NETS.values(), ids=NETS)
def test_every_kind_of_net_becomes_a_program_that_gives_its_logits_in_batches_of_any_size(tmp_path, settings):
    source = random_source(preprocessing=COLOUR, **{"size": 37, **settings})
    path = tmp_path / "net.onnx"
    exports.write_export(path, "onnx", source, ())
    images = np.random.default_rng(3).normal(size=(5, *source.card.input_shape)).astype(np.float32)
    for batch in (images[:2], images):
        own = np.asarray(source.model.apply(source.variables, batch, train=False))
        assert np.abs(run(path, batch) - own).max() <= 1e-4 * np.abs(own).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "preprocessing",
    [
        GREY,
        {**COLOUR, "channel_order": "BGR"},
        {**COLOUR, "resize": 11},
        {**GREY, "mean_image": [[[0.2], [0.7]] * 4] * 8},
    ],
    ids=["grey", "BGR", "resized", "mean image"],
)
def test_preprocessing_inside_a_program_is_that_outside(tmp_path, preprocessing):
    source = random_source(uint8=True, preprocessing=preprocessing)
    exports.write_export(tmp_path / "net.onnx", "onnx", source, ())
    preprocess = source.card.create_preprocessing()
    views = np.random.default_rng(4).integers(0, 256, (4, *preprocess.view_shape), np.uint8)
    own = np.asarray(source.model.apply(source.variables, preprocess(views), train=False))
    assert np.abs(run(tmp_path / "net.onnx", views) - own).max() <= 1e-4 * np.abs(own).max()


@pytest.mark.slow
def test_the_command_exports_a_run_with_its_card_and_samples(finished, tmp_path, capfd):
    path = tmp_path / "tiny.onnx"
    main([str(finished[0]), str(path)])
    output = capfd.readouterr()
    assert output.out.startswith(f"wrote {path}, the model's logits to ") and not output.err
    found = metadata(path)
    inputs, logits = (np.load(io.BytesIO(base64.b64decode(found[f"sample_{name}"]))) for name in ("inputs", "logits"))
    assert ModelCard.from_json(json.loads(found["card"])).class_names == tuple("0123456789")
    model, variables = load_checkpoint(finished[0])
    images = np.asarray(load_data(finished[0])[0][:20])
    for given, expected in ((inputs, logits), (images, model.apply(variables, images, train=False))):
        np.testing.assert_allclose(run(path, given), expected, rtol=1e-3, atol=1e-4)


def test_a_function_that_cannot_be_converted_is_refused_in_one_line():
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), 4, 4, 1), jnp.float32)
    with pytest.raises(UserError, match="jax2onnx cannot convert this model .*; nothing was written") as refused:
        to_onnx(lambda x: jax.lax.reduce_window(x, 1.0, jax.lax.mul, (1, 2, 2, 1), (1, 1, 1, 1), "VALID"), images, {})
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_program_that_gives_other_logits_is_removed(tmp_path, monkeypatch):
    exports.write_export(tmp_path / "other.onnx", "onnx", random_source(seed=2), ())
    content = (tmp_path / "other.onnx").read_bytes()
    monkeypatch.setattr(exports, "write_bytes", lambda path, _: path.write_bytes(content))
    with pytest.raises(exports.WrongExport, match="expected the model's logits to 0.0001 relative, found a difference"):
        exports.write_export(tmp_path / "out.onnx", "onnx", random_source(), ())
    assert [path.name for path in tmp_path.iterdir()] == ["other.onnx"]


def test_without_the_packages_the_command_says_what_to_install(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(SystemExit) as end:
        main([str(finished[0]), str(tmp_path / "out.onnx")])
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and "pip install -r requirements-export.txt && pip" in lines[0]
    assert not list(tmp_path.iterdir())
