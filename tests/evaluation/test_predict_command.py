"""The command that names what is on images."""

import csv
import errno
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax import evaluate, train
from resnet_jax.evaluation.cam import class_activation_map
from resnet_jax.evaluation.overlays import overlay
from resnet_jax.predict import main
from tests.runs import ROOT
from tests.tiny import tiny_config
from tests.training.test_stream_runs import photo_config

CLASSES = {"china": "n01440764", "flower": "n02123045"}  # tench, tabby


@pytest.fixture(scope="module")
def photos(folder, tmp_path_factory):
    """The photographs in folders that are named like ImageNet's."""
    root = tmp_path_factory.mktemp("photos")
    for split in ("train", "val"):
        (root / split).mkdir()
        for name, wordnet_id in CLASSES.items():
            (root / split / wordnet_id).symlink_to(folder / split / name)
    return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train(photo_config(photos, eval__crop_fraction=0.8, train__ema_decay=0.5), workdir)
    return workdir


def predicted(capsys, *arguments):
    """(stdout, stderr, exit status) of the command."""
    capsys.readouterr()
    status = 0
    try:
        main(list(map(str, arguments)))
    except SystemExit as stop:
        status = stop.code
    return *capsys.readouterr(), status


def test_probabilities_are_those_of_scripts_and_of_evaluate(run, photos, tmp_path, capsys):
    for options, ema in (([], False), (["--ema", "--step=latest"], True)):
        out, _, status = predicted(capsys, run, photos / "val", "--format=json", "--top=9", *options)
        rows = [json.loads(line) for line in out.splitlines()]
        assert status == 0 and len(rows) == 6
        model, variables = resnet_jax.load_checkpoint(run, "latest" if ema else "best", ema=ema)
        preprocess = resnet_jax.preprocessing(run)
        logits = model.apply(variables, preprocess([row["image"] for row in rows]), train=False)
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        for row, probabilities in zip(rows, expected, strict=True):
            assert [guess["label"] for guess in row["predictions"]] == np.argsort(-probabilities).tolist()
            for guess in row["predictions"]:
                assert guess["probability"] == pytest.approx(probabilities[guess["label"]], rel=1e-5)
        evaluate.main([str(run), f"--predictions={tmp_path / 'p.csv'}", *options])
        with open(tmp_path / "p.csv", newline="") as file:
            scored = {line["example"]: line for line in csv.DictReader(file)}
        for row in rows:
            line, best = scored[os.path.relpath(row["image"], photos / "val")], row["predictions"][0]
            assert int(line["prediction"]) == best["label"]
            assert float(line["probability"]) == pytest.approx(best["probability"], abs=2e-6)


def test_a_model_of_small_grey_images_takes_files_too(tmp_path, capsys):
    train(tiny_config(train__steps=30), tmp_path / "run")
    images, labels = resnet_jax.load_data(tmp_path / "run")
    pixels = np.asarray(resnet_jax.data.splits.load_splits("digits", 0, None)["test"].images)
    for index in range(20):
        Image.fromarray(pixels[index, ..., 0]).save(tmp_path / f"{index:02d}.png")
    out, _, _ = predicted(capsys, tmp_path / "run", tmp_path / "*.png", "--format=csv", "--top=1")
    model, variables = resnet_jax.load_checkpoint(tmp_path / "run")
    logits = np.asarray(model.apply(variables, images[:20], train=False))
    assert [int(line["label"]) for line in csv.DictReader(out.splitlines())] == logits.argmax(axis=1).tolist()


def test_table_json_and_csv_say_the_same_in_readable_names(run, photos, capsys):
    names = sorted(map(str, (photos / "val" / "n02123045").iterdir()))
    outs = {name: predicted(capsys, run, *names, f"--format={name}")[0] for name in ("table", "json", "csv")}
    expected = []
    for line in outs["json"].splitlines():
        row = json.loads(line)
        for rank, guess in enumerate(row["predictions"], start=1):
            assert guess["class"] == ("tench", "tabby")[guess["label"]]
            expected.append([row["image"], str(rank), str(guess["label"]), guess["class"], guess["probability"]])
    assert [row[0] for row in expected[::2]] == names and len(expected) == 2 * len(names)
    header, *lines = csv.reader(outs["csv"].splitlines())
    assert header == ["image", "rank", "label", "class", "probability"]
    assert [[*line[:4], float(line[4])] for line in lines] == expected
    header, _, *lines = outs["table"].splitlines()
    assert header.split() == ["image", "class", "probability"]
    for line, (image, rank, _, name, probability) in zip(lines, expected, strict=True):
        assert line.split() == [*([image] if rank == "1" else []), name, f"{probability:.2%}"]


def test_what_cannot_be_read_is_named_on_stderr_and_in_the_exit_status(run, photos, tmp_path, capsys):
    good = next((photos / "val" / "n02123045").iterdir())
    (tmp_path / "new\nline.jpg").write_bytes(b"text")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "half.jpg").write_bytes(good.read_bytes()[:5000])
    out, err, status = predicted(capsys, run, tmp_path, good, "nothing.png", "--format=json")
    assert status == 3
    assert [json.loads(line)["image"] for line in out.splitlines()] == [str(good)]
    skipped = [line for line in err.splitlines() if line.startswith("skipped")]
    path = ascii(str(tmp_path / "new\nline.jpg"))
    assert skipped[0] == f"skipped {path}: it is no image of a known format"
    assert skipped[1].startswith(f"skipped {tmp_path}/sub/half.jpg: ") and "truncated" in skipped[1]
    assert skipped[2:] == ["skipped nothing.png: no such file"]


def test_overlays_are_of_the_best_class_and_of_what_the_model_saw(run, photos, tmp_path, capsys):
    names = [tmp_path / "a" / "same.jpg", tmp_path / "b" / "same.jpg"]
    for name, image in zip(names, (photos / "val" / "n02123045").iterdir(), strict=False):
        name.parent.mkdir()
        name.write_bytes(image.read_bytes())
    out, _, status = predicted(capsys, run, *names, "--format=json", f"--cam={tmp_path / 'new' / 'cam'}")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert {row["cam"] for row in rows} == {str(path) for path in (tmp_path / "new" / "cam").iterdir()}
    assert len({row["cam"] for row in rows}) == 2
    model, variables = resnet_jax.load_checkpoint(run)
    preprocess = resnet_jax.preprocessing(run)
    for row in rows:
        view = preprocess.center_view(np.asarray(Image.open(row["image"])))
        label = np.array([row["predictions"][0]["label"]])
        (heat,) = class_activation_map(model, variables, preprocess(row["image"]), label)
        difference = np.asarray(Image.open(row["cam"])).astype(int) - overlay(view, np.asarray(heat))
        assert np.abs(difference).max() <= 3
    out, _, _ = predicted(capsys, run, *names, "--format=csv", f"--cam={tmp_path / 'new' / 'cam'}")
    assert {line["cam"] for line in csv.DictReader(out.splitlines())} == {row["cam"] for row in rows}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "nothing.jpg", "*.none"], "expected images, found none: nothing.jpg: no such file; *.none: no file"),
        (["{run}", "{run}/checkpoints"], "checkpoints: the folder has no images"),
        (["{run}", "{photos}/val", "--top=0"], "--top: expected a number of classes, min 1, found 0"),
        (["{photos}", "{photos}/val"], "expected the folder of a run"),
        (["{run}", "{photos}/val", "--cam={run}/card.json/x"], "--cam: {run}/card.json/x cannot be written"),
        (["{run}", "{photos}/val", "--fromat=json"], "did you mean '--format'"),
    ],
)
def test_what_cannot_be_done_is_refused(run, photos, arguments, message, capsys):
    places = {"run": run, "photos": photos}
    out, err, status = predicted(capsys, *(argument.format(**places) for argument in arguments))
    assert status == 2 and out == "" and message.format(**places) in err


def in_process(*arguments, **streams):
    code = "import sys, tests.tiny; from resnet_jax.predict import main; main(sys.argv[1:])"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, **streams)


@pytest.mark.slow
def test_a_full_disk_under_the_rows_is_an_error(run, photos):
    with open("/dev/full", "w") as full:
        process = in_process(run, photos / "val", "--format=csv", stdout=full, stderr=subprocess.PIPE)
        err = process.communicate()[1].decode()
    assert process.returncode == 2 and "error: stdout: it cannot be written" in err


@pytest.mark.slow
@pytest.mark.parametrize("stdout_too", [False, True])
def test_on_a_terminal_there_is_a_progress_bar_and_rows_stay_clean(run, photos, tmp_path, stdout_too):
    ours, terminal = os.openpty()
    (tmp_path / "bad.jpg").touch()
    stdout = terminal if stdout_too else subprocess.PIPE
    process = in_process(run, tmp_path, photos / "val", "--format=json", stdout=stdout, stderr=terminal)
    os.close(terminal)
    shown = read_terminal(ours)
    out = shown if stdout_too else process.communicate()[0].decode()
    assert process.wait() == 3
    assert "predicting" in shown and f"skipped {tmp_path}/bad.jpg: it is empty" in shown
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out).splitlines()  # without what moves the cursor
    rows = [line for line in lines if line.startswith("{")]
    assert [len(json.loads(line)["predictions"]) for line in rows] == [2] * 6
    assert stdout_too or len(out.splitlines()) == 6


def read_terminal(descriptor):
    """All that a process shows until it has gone."""
    shown = b""
    try:
        while part := os.read(descriptor, 10_000):
            shown += part
    except OSError as error:  # Linux's way to say that the other end is closed
        if error.errno != errno.EIO:
            raise
    finally:
        os.close(descriptor)
    return shown.decode()


def test_the_help_says_what_becomes_of_odd_images(capsys):
    out, _, status = predicted(capsys, "--help")
    assert status == 0
    for words in (
        "first frame",
        "EXIF",
        "transparency",
        "16 bits",
        "67,108,864",
        "Exit status",
        "3, some were skipped",
    ):
        assert words in out
