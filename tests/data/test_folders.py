"""Folders as people have them: what is data in them, which part each plays, and what changes under a run."""

import csv
import io
import os
import shutil
import tarfile

import numpy as np
import pytest
import simplejpeg
from PIL import Image

import resnet_jax
from resnet_jax import UserError, evaluate, train
from resnet_jax.config.build import Assembly, make_recipe
from resnet_jax.data import check, files
from resnet_jax.data.decode import CorruptImage, decode
from resnet_jax.data.splits import fingerprint, load_splits, open_sources
from resnet_jax.errors import InterruptedRun
from resnet_jax.evaluation.predictions import compare, read_predictions
from tests.tiny import tiny_config


@pytest.fixture(autouse=True)
def fresh():
    open_sources.cache_clear()


def write_image(path, grey=0, side=24, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), grey, np.uint8)).save(path, **options)


def write_classes(root, count=6, classes=("cat", "dog")):
    for label, name in enumerate(classes):
        for index in range(count):
            write_image(root / name / f"{index}.jpg", grey=100 * label + index)
    return root


def names(source):
    return [os.path.relpath(source.name(index), source.folder) for index in range(len(source))]


def photo_config(root, **settings):
    defaults = {
        "data__name": "folder",
        "data__loader": "stream",
        "data__data_dir": str(root),
        "data__validation_size": 0,
        "data__image_size": 16,
        "train__batch_size": 4,
        "train__steps": 4,
        "log__every_steps": 2,
        "augment__pad_crop": 0,
    }
    return tiny_config(**{**defaults, **settings})


def test_what_systems_leave_behind_is_no_data_at_any_depth(tmp_path):
    train_folder = write_classes(tmp_path / "train", 2)
    write_classes(tmp_path / "test", 1)
    (train_folder / "cat" / "._1.jpg").write_bytes(b"macOS")
    write_image(train_folder / "dog" / ".ipynb_checkpoints" / "1-checkpoint.jpg")
    write_image(train_folder / "dog" / "deep" / "@eaDir" / "1.jpg")
    write_image(train_folder / "__MACOSX" / "1.jpg")
    write_image(train_folder / "cat" / "__MACOSX" / "1.jpg")
    info, splits = open_sources("folder", str(tmp_path))
    assert info.class_names == ("cat", "dog")
    assert names(splits["train"]) == ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg"]


def test_the_same_holds_in_tar_files(tmp_path):
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for name in ("./cat/1.jpg", "cat/._1.jpg", "__MACOSX/cat/1.jpg", "cat/.hidden/2.jpg"):
                data = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    info, splits = open_sources("tar", str(tmp_path))
    assert (info.class_names, len(splits["train"])) == (("cat",), 1)


def test_each_real_folder_counts_once_however_links_run(tmp_path):
    train_folder = write_classes(tmp_path / "train", 3)
    write_classes(tmp_path / "test", 1)
    (train_folder / "cat" / "current").symlink_to(".")
    (train_folder / "cat" / "up").symlink_to("..")
    (train_folder / "dog" / "other").symlink_to("../dog")
    (train_folder / "again").symlink_to(".")
    write_classes(tmp_path / "elsewhere", 2, ["bird"])
    (train_folder / "bird").symlink_to(tmp_path / "elsewhere" / "bird")  # a class may lie elsewhere
    info, splits = open_sources("folder", str(tmp_path))
    assert info.class_names == ("bird", "cat", "dog")
    assert np.bincount(splits["train"].labels).tolist() == [2, 3, 3]


def test_all_that_can_be_decoded_is_read_and_the_rest_is_counted_by_suffix(tmp_path):
    write_classes(tmp_path / "test", 1, ["cat"])
    suffixes = {"a.jfif": "JPEG", "b.JPE": "JPEG", "c.avif": "AVIF", "d.jp2": "JPEG2000", "e.WebP": "WEBP"}
    for name, kind in suffixes.items():
        write_image(tmp_path / "train" / "cat" / name, grey=50, format=kind)
    for name in ("notes.txt", "more.TXT", "photo.heic", "README"):
        (tmp_path / "train" / "cat" / name).write_text("no image")
    with pytest.warns(UserWarning, match=r"left out .* \(no suffix\) \(1\), .heic \(1\), .txt \(2\)"):
        _, splits = open_sources("folder", str(tmp_path))
    assert names(splits["train"]) == [f"cat/{name}" for name in sorted(suffixes)]
    assert all(abs(int(decode(splits["train"].read(i).image)[0, 0, 0]) - 50) < 4 for i in range(5))


def test_what_does_not_answer_or_never_ends_is_not_waited_for(tmp_path):
    folder = write_classes(tmp_path / "train", 2, ["cat"])
    write_classes(tmp_path / "test", 1, ["cat"])
    os.mkfifo(folder / "cat" / "pipe.jpg")
    (folder / "cat" / "endless.jpg").symlink_to("/dev/zero")
    with open(folder / "cat" / "huge.jpg", "wb") as file:
        file.truncate(20 * 10**9)
    (folder / "cat" / "lost.jpg").symlink_to("/nowhere/1.jpg")
    with pytest.warns(UserWarning, match=r"left out .* broken links, pipes and devices \(3\)"):
        _, splits = open_sources("folder", str(tmp_path))
    assert names(splits["train"]) == ["cat/0.jpg", "cat/1.jpg", "cat/huge.jpg"]
    assert splits["train"].read(2).image == b""  # a corrupt image
    for name in ("pipe.jpg", "endless.jpg", "huge.jpg"):
        with pytest.raises(OSError, match=r"not a regular file|20,000,000,000 bytes are more than the 268,435,456"):
            files.read_bytes(folder / "cat" / name)
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            resnet_jax.preprocessing(tiny_card())(folder / "cat" / name)


def tiny_card():
    return make_recipe(tiny_config()).card({})


def test_a_file_of_another_kind_or_of_too_many_pixels_is_corrupt(tmp_path):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    with pytest.raises(CorruptImage, match="it is no image of a known format"):
        decode(eps)
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 22_000
    with pytest.raises(CorruptImage, match="9000x9000 pixels are more than 67,108,864"):
        decode(bomb.getvalue())


def test_a_label_that_no_data_set_has_is_refused(tmp_path):
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            members = {"1.jpg": simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)), "1.cls": b"100000000000"}
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    with pytest.raises(UserError, match="expected labels below 100,000 .* found 100,000,000,000"):
        open_sources("tar", str(tmp_path))


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev"])
def test_each_folder_plays_the_part_of_its_name(tmp_path, name):
    for split, count in (("train", 6), (name, 3), ("test", 2)):
        write_classes(tmp_path / split, count)
    recipe = make_recipe(photo_config(tmp_path, data__validation_size=0.25))
    assert (recipe.num_examples, recipe.num_validation) == (12, 6)
    assert f"12 train (train/), 6 validation ({name}/), 4 test (test/)" in recipe.describe(["cpu"], "", "x")["data"]
    splits = load_splits("folder", 0.25, str(tmp_path), use_validation_split=True)
    assert {split: len(source) for split, source in splits.items()} == {"train": 12, "validation": 6, "test": 4}
    held_out = load_splits("folder", 0.25, str(tmp_path))
    assert {split: len(source) for split, source in held_out.items()} == {"train": 9, "validation": 3, "test": 4}


def test_a_validation_folder_alone_is_the_test_split(tmp_path):
    write_classes(tmp_path / "train", 6)
    write_classes(tmp_path / "val", 2)
    recipe = make_recipe(photo_config(tmp_path, data__validation_size=2))
    assert (recipe.num_examples, recipe.num_validation, recipe.info.splits["test"]) == (10, 2, 4)


@pytest.mark.parametrize(("test_size", "count"), [(0.25, 10), (8, 8)])
def test_a_folder_of_classes_is_divided_by_itself_stratified_and_always_alike(tmp_path, test_size, count):
    write_classes(tmp_path, 20)
    splits = load_splits("folder", 0.1, str(tmp_path), test_size=test_size)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 40 - count - round(0.1 * (40 - count)),
        "validation": round(0.1 * (40 - count)),
        "test": count,
    }
    parts = [{split.name(i) for i in range(len(split))} for split in splits.values()]
    assert len(set.union(*parts)) == 40
    assert np.bincount(splits["test"].labels).tolist() == [count // 2, count // 2]
    open_sources.cache_clear()
    assert fingerprint(load_splits("folder", 0.1, str(tmp_path), test_size=test_size)) == fingerprint(splits)


def test_what_is_left_out_of_a_folder_that_is_divided_is_said_too(tmp_path):
    write_classes(tmp_path, 5)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    with pytest.warns(UserWarning, match=r"left out .* .txt \(1\)"):
        _, sources = open_sources("folder", str(tmp_path))
    assert sum(map(len, sources.values())) == 10


def test_the_folder_that_was_trained_on_can_be_evaluated_as_other_data(tmp_path):
    write_classes(tmp_path / "data" / "train", 6)
    write_classes(tmp_path / "data" / "test", 2)
    result = train(photo_config(tmp_path / "data"), tmp_path / "run")
    predictions = evaluate.predict(tmp_path / "run", data=str(tmp_path / "data"))
    assert len(predictions.names) == 4
    open_sources.cache_clear()
    write_classes(tmp_path / "flat", 10)
    train(photo_config(tmp_path / "flat", data__test_size=0.3), tmp_path / "divided")
    assert len(evaluate.predict(tmp_path / "divided", data=str(tmp_path / "flat")).names) == 6
    assert predictions.scores()["accuracy"] == result["last"]["test"]["accuracy"]


def test_a_renamed_class_is_refused_wherever_it_would_count(tmp_path):
    write_classes(tmp_path / "data" / "train", 6)
    write_classes(tmp_path / "data" / "test", 2)
    config, workdir = photo_config(tmp_path / "data"), tmp_path / "run"
    with pytest.raises(InterruptedRun):
        train(config, workdir, stop_requested=lambda step: step == 2)
    for split in ("train", "test"):
        (tmp_path / "data" / split / "cat").rename(tmp_path / "data" / split / "wolf")
    open_sources.cache_clear()
    message = "expected the 2 classes of the model, found 2, without 'cat' and with 'wolf'"
    for use in (
        lambda: evaluate.evaluate(workdir, step="latest"),
        lambda: resnet_jax.load_data(workdir, "test"),
        lambda: train(config, workdir),
    ):
        with pytest.raises(UserError, match=message):
            use()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "0.jpg").unlink(), "expected the 12 examples of the train split, found 11"),
        (lambda folder: (folder / "0.jpg").rename(folder / "9.jpg"), "train split, found others by name or label"),
    ],
)
def test_data_that_changed_under_a_run_are_refused_and_a_moved_copy_is_not(tmp_path, change, message):
    write_classes(tmp_path / "data" / "train", 6)
    write_classes(tmp_path / "data" / "test", 2)
    with pytest.raises(InterruptedRun):
        train(photo_config(tmp_path / "data"), tmp_path / "run", stop_requested=lambda step: step == 2)
    moved = (tmp_path / "data").rename(tmp_path / "scratch")
    open_sources.cache_clear()
    with pytest.raises(InterruptedRun):
        train(photo_config(moved), tmp_path / "run", stop_requested=lambda step: step == 3)
    moved.rename(tmp_path / "data")
    change(tmp_path / "data" / "train" / "dog")
    open_sources.cache_clear()
    with pytest.raises(UserError, match=message):
        train(photo_config(tmp_path / "data"), tmp_path / "run")


def test_a_batch_larger_than_the_training_split_is_refused(tmp_path):
    write_classes(tmp_path / "train", 2)
    write_classes(tmp_path / "test", 2)
    with pytest.raises(UserError, match="batch_size: expected at most the 4 training examples of folder, found 5"):
        make_recipe(photo_config(tmp_path, train__batch_size=5))
    with pytest.raises(UserError, match="train.batch_size: expected at most the 1257 training examples of digits"):
        make_recipe(tiny_config(train__batch_size=10**20))


def test_what_would_be_found_after_all_epochs_is_found_at_the_start(tmp_path):
    write_classes(tmp_path / "train", 6)
    test_folder = write_classes(tmp_path / "test", 2)
    whole = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    cut, no_image = whole[: len(whole) - 200], b"no image"
    for content, how, found in (
        (no_image, "headers", True),  # before it is found good: a process looks once at the same data
        (cut, "headers", False),
        (cut, "full", True),
        (no_image, "off", False),
    ):
        (test_folder / "dog" / "1.jpg").write_bytes(content)
        recipe = make_recipe(photo_config(tmp_path, data__verify=how))
        if found:
            with pytest.warns(UserWarning, match="1.jpg cannot be decoded"), pytest.raises(UserError, match="found 1"):
                Assembly(recipe)
        else:
            Assembly(recipe)


def test_predictions_have_names_probabilities_and_keys_that_a_copy_shares(tmp_path):
    write_classes(tmp_path / "data" / "train", 6)
    write_classes(tmp_path / "data" / "test", 2)
    train(photo_config(tmp_path / "data"), tmp_path / "run")
    copy = shutil.copytree(tmp_path / "data", tmp_path / "copy")
    found = [evaluate.predict(tmp_path / "run", data=str(folder)) for folder in (tmp_path / "data", copy)]
    assert found[0].names == ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg"]
    assert compare(*found).p_value == 1.0
    found[0].write(tmp_path / "predictions.csv")
    again = read_predictions(tmp_path / "predictions.csv")
    assert again.classes == found[0].classes and set(again.classes) <= {"cat", "dog"}
    model, variables = resnet_jax.load_checkpoint(tmp_path / "run")
    images, _ = resnet_jax.load_data(tmp_path / "run", "test")
    logits = np.asarray(model.apply(variables, images, train=False), np.float64)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(again.probabilities, (probabilities / probabilities.sum(1, keepdims=True)).max(1), 1e-4)


def test_pictures_without_labels_get_predictions_and_no_scores(tmp_path, capsys):
    write_classes(tmp_path / "data" / "train", 6)
    write_classes(tmp_path / "data" / "test", 2)
    train(photo_config(tmp_path / "data"), tmp_path / "run")
    pictures = tmp_path / "pictures"
    for name in ("b.jpg", "a.png"):
        write_image(pictures / name)
    file = tmp_path / "out.csv"
    for data, expected in ((pictures, ["a.png", "b.jpg"]), (pictures / "b.jpg", ["b.jpg"])):
        capsys.readouterr()
        evaluate.main([str(tmp_path / "run"), "--data", str(data), "--predictions", str(file)])
        text = capsys.readouterr().out
        assert f"{len(expected)} images without labels" in text and "accuracy" not in text
        rows = list(csv.DictReader(file.open()))
        assert [row["example"] for row in rows] == expected
        assert all(row["class"] in ("cat", "dog") and float(row["probability"]) >= 0.5 for row in rows)
        assert all(row["labels"] == row["correct"] == row["loss"] == "" for row in rows)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--data: expected images, found none"):
        evaluate.predict(tmp_path / "run", data=str(tmp_path / "empty"))


def test_a_look_at_a_folder_finds_what_is_wrong_with_it(tmp_path, capsys):
    train_folder = write_classes(tmp_path / "train", 4)
    test_folder = write_classes(tmp_path / "test", 2)
    write_image(train_folder / "dog" / "large.png", side=60)
    (test_folder / "cat" / "1.jpg").write_bytes(b"no image")
    check.main([str(tmp_path)])
    text = capsys.readouterr().out
    assert [line.replace("\u2502", " ").split() for line in text.splitlines() if " dog " in line] == [["dog", "5", "2"]]
    assert "24x24, 24x24, 60x60" in text and ".jpg (8), .png (1)" in text
    assert f"corrupt: {test_folder / 'cat' / '1.jpg'}" in text
    assert f"the same image: {train_folder / 'cat' / '0.jpg'} (train), {test_folder / 'cat' / '0.jpg'} (test)" in text
