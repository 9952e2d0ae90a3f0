"""Preparation of data sets that stay on disk, from files fetched by hand or TFRecord copies; evaluation sets."""

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import tensorflow_datasets as tfds

from resnet_jax.data import prepare as prepare_lib
from resnet_jax.data import tfds as tfds_sources
from resnet_jax.data.prepare import main, prepare
from resnet_jax.data.splits import open_sources
from resnet_jax.errors import UserError
from resnet_jax.evaluation.sets import open_evaluation_set
from tests.data.tfds_files import SIZES, assert_reads_back, contents, greys_and_labels, store, write_idx, write_imagenet

pytestmark = pytest.mark.usefixtures("tiny_data_sets", "no_network")


def test_imagenet_is_prepared_from_the_files_fetched_by_hand(tmp_path, monkeypatch, capsys):
    write_imagenet(tmp_path / "manual")
    main(["imagenet2012", "--data_dir", str(tmp_path / "data"), "--manual", str(tmp_path / "manual")])
    assert (
        "python train.py --config=configs/imagenet_resnet50.py --config.data.name=imagenet2012"
        in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="should have the splits .*1281167"):
        open_sources("imagenet2012", str(tmp_path / "data"))
    monkeypatch.setitem(tfds_sources.NAMED, "imagenet2012", ("validation", {"train": 8, "test": 4}))
    info, splits = open_sources("imagenet2012", str(tmp_path / "data"))
    assert info.num_classes == 1000 and info.class_names[1] == "n01443537"
    expected = sorted((100 * label + 10 * i, label) for label in range(2) for i in range(4))
    assert greys_and_labels(splits["train"]) == expected
    official = [65, 970, 230, 809]  # the labels of the first validation images of ILSVRC2012
    assert greys_and_labels(splits["test"]) == sorted(zip((5, 10, 15, 20), official, strict=True))


def test_without_the_files_to_fetch_by_hand_their_names_are_shown(tmp_path):
    for arguments in ({}, {"manual": str(tmp_path / "nowhere")}):
        with pytest.raises(UserError, match="ILSVRC2012_img_train.tar"):
            prepare("imagenet2012", str(tmp_path / "data"), **arguments)


def test_a_tfrecord_copy_is_converted_record_by_record(tmp_path):
    examples = write_idx(tmp_path / "files")
    builder = tfds.builder("fashion_mnist", data_dir=tmp_path / "old", file_format="tfrecord")
    prepare_lib._write_from_files(builder, "fashion_mnist", tmp_path / "files")
    before = contents(tmp_path / "old")
    with pytest.raises(UserError, match="give their --data_dir as --tfrecord, and another --data_dir"):
        prepare("fashion_mnist", str(tmp_path / "old"))
    prepare("fashion_mnist", str(tmp_path / "new"), tfrecord=str(tmp_path / "old"))
    assert_reads_back("fashion_mnist", tmp_path / "new", examples)
    assert contents(tmp_path / "old") == before
    with pytest.raises(UserError, match="expected TFRecord files of kmnist"):
        prepare("kmnist", str(tmp_path / "new"), tfrecord=str(tmp_path / "old"))


def test_a_tfrecord_copy_that_is_not_whole_is_refused(tmp_path):
    write_idx(tmp_path / "files")
    builder = tfds.builder("fashion_mnist", data_dir=tmp_path / "old", file_format="tfrecord")
    prepare_lib._write_from_files(builder, "fashion_mnist", tmp_path / "files")
    (shard,) = (tmp_path / "old").rglob("*-train.tfrecord-00000-of-00001")
    whole = shard.read_bytes()
    sizes = sum(SIZES.values()), SIZES["train"]
    for content, message in (
        (whole[:-5], "00000-of-00001 is corrupt"),
        (whole[: len(whole) // SIZES["train"]], f"expected {sizes[0]} examples .*, found {sizes[0] - sizes[1] + 1}"),
        (None, f"expected {sizes[0]} examples .*, found {sizes[0] - sizes[1]}"),
    ):
        shard.unlink() if content is None else shard.write_bytes(content)
        with pytest.raises(UserError, match=message):
            prepare("fashion_mnist", str(tmp_path / "new"), tfrecord=str(tmp_path / "old"))
    assert not list((tmp_path / "new").rglob("*.array_record*"))


def test_evaluation_sets_are_read_with_all_right_labels_and_their_classes_alone(tmp_path):
    imagenet = tuple(tfds.builder("imagenet2012", data_dir=tmp_path).info.features["label"].names)
    store("imagenet2012_real", tmp_path, "validation", "real_label", [(10, [3, 4]), (20, []), (30, [999])])
    source, possible = open_evaluation_set("imagenet2012_real", str(tmp_path), imagenet)
    assert [source.read(i).label.tolist() for i in range(3)] == [[3, 4], [], [999]] and possible is None
    store("imagenet_a", tmp_path, "test", "label", [(10, 6), (20, 11), (30, 6)])
    source, possible = open_evaluation_set("imagenet_a", str(tmp_path), imagenet)
    _, as_elsewhere = open_evaluation_set("tfds:imagenet_a", str(tmp_path), imagenet)
    np.testing.assert_array_equal(as_elsewhere, possible)
    assert np.flatnonzero(possible).tolist() == [6, 11] and greys_and_labels(source) == [(10, 6), (20, 11), (30, 6)]
    store("imagenet_v2", tmp_path, "test", "label", [(10, 6)])
    assert open_evaluation_set("imagenet_v2", str(tmp_path), imagenet)[1] is None
    with pytest.raises(UserError, match="expected the 2 classes of the run"):
        open_evaluation_set("imagenet_v2", str(tmp_path), ("cat", "dog"))
