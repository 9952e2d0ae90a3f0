import pathlib

import pytest

from resnet_jax import create_model, summary
from resnet_jax.models.profile import profile, totals
from tests.studies.folders import screen_rows


def test_a_layers_costs_are_those_counted_by_hand():
    layers = {layer.name: layer for layer in profile(create_model("resnet20", num_classes=10), (32, 32, 3))}
    assert len(layers) == 2 * 19 + 2  # a norm for each convolution, the pooling, the head
    conv = layers["stage2_block1/conv1"]
    assert conv.output_shape == (16, 16, 32)
    assert conv.parameters == 3 * 3 * 16 * 32
    assert conv.multiply_adds == 16 * 16 * 32 * (3 * 3 * 16)
    assert conv.activation_bytes == 16 * 16 * 32 * 4
    assert layers["stage2_block1/bn1"].parameters == 2 * 32
    assert layers["fc"].multiply_adds == 64 * 10
    assert layers["fc"].parameters == 64 * 10 + 10
    assert totals(list(layers.values()))[0] == 269_722


def test_the_command_shows_the_published_value_beside_ours(capsys):
    summary.main(["resnet50"])
    screen = capsys.readouterr().out
    assert screen.count("25,557,032") == 2
    assert "4,089,184,256" in screen
    assert "4,090,000,000" in screen
    summary.main(["resnet50_v1", "--size", "224"])
    assert "3,800,000,000" in capsys.readouterr().out
    summary.main(["resnet50", "--size", "160"])
    assert "4,090,000,000" not in capsys.readouterr().out  # published for 224


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("vgg16", ("138,357,544", "15,300,000,000")),
        ("vgg16_bn", ("138,365,992", "15,300,000,000")),
        ("preact_resnet50", ("25,549,352", "resnetv2_50")),
        ("preact_resnet164", ("one 32x32x3 image", "1,703,258")),
    ],
)
def test_relatives_are_shown_with_what_is_published_of_them(name, published, capsys):
    summary.main([name])
    screen = capsys.readouterr().out
    for text in published:
        assert text in screen


def test_shortcuts_with_parameters_have_lines_of_their_own():
    layers = {}
    for shortcut in ("highway", "skipinit"):
        model = create_model("preact_resnet164", num_classes=10, shortcut=shortcut, norm="none", stage_sizes=(1,))
        layers |= {layer.name: layer for layer in profile(model, (32, 32, 3))}
    assert layers["stage1_block1/gate"].parameters == 16 * 64 + 64
    assert layers["stage1_block1/gate"].multiply_adds == 32 * 32 * 16 * 64
    assert layers["stage1_block1/branch_scale"].parameters == 1
    assert layers["stage1_block1/bn2"].parameters == 16
    assert layers["stage1_block1/bn2"].multiply_adds == 0


def test_the_table_has_a_line_for_each_layer_and_says_what_it_counts(capsys):
    summary.main(["plain20", "--table"])
    screen = capsys.readouterr().out
    for name in ("multiply-adds", "stage3_block3/conv2", "8x8x64", "36,864", "2,359,296"):
        assert name in screen


@pytest.mark.parametrize(
    ("size", "sides"), [(224, (56, 56, 28, 14, 7)), (96, (24, 24, 12, 6, 3))]
)  # as printed in Dive into Deep Learning, section 7.6, for 224 (first edition) and 96 pixels (later ones)
def test_the_shapes_after_each_stage_are_those_of_the_book(size, sides, capsys):
    summary.main(["resnet18", f"--size={size}", "--channels=1", "--classes=10"])
    names, channels = ("stem", "stage1", "stage2", "stage3", "stage4"), (64, 64, 128, 256, 512)
    expected = [[n, f"{s}x{s}x{c}"] for n, s, c in zip(names, sides, channels, strict=True)]
    assert screen_rows(capsys.readouterr().out) == [*expected, ["pre_logits", "512"], ["logits", "10"]]


def test_a_table_is_never_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    summary.main(["resnet50"])
    screen = capsys.readouterr().out
    assert "4,089,184,256" in screen and "56x56x256" in screen and "…" not in screen


def test_the_image_and_the_head_of_a_run_are_its_own(tmp_path, capsys):
    run = pathlib.Path(__file__).parent.parent / "golden" / "v1" / "digits_ema"
    with pytest.raises(SystemExit):
        summary.main([str(run), "--classes=7"])
    assert "--classes: expected none for a run, which has its own, found 7" in capsys.readouterr().err
    summary.main([str(run)])
    assert "tiny, one 8x8x1 image, 10 classes" in capsys.readouterr().out


def test_poolings_have_lines_and_cost_nothing(capsys):
    summary.main(["resnet18", "--table", "--channels=1", "--classes=10"])
    found = {row[0]: row[1:4] for row in screen_rows(capsys.readouterr().out)}
    assert found["max_pool"] == ["56x56x64", "0", "0"]
    assert found["pool"] == ["512", "0", "0"]
    summary.main(["vgg11", "--table"])
    found = {row[0]: row[1:4] for row in screen_rows(capsys.readouterr().out)}
    assert found["stage5_pool"] == ["7x7x512", "0", "0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet51"], "no model is called 'resnet51'"),
        (["resnet50", "--size", "8"], "the smallest is 17x17"),
        (["resnet50", "--size", "0"], "--size: expected at least 1, found 0"),
    ],
)
def test_bad_input_is_a_message_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        summary.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
