"""`resnet_jax.data.prepare` on tiny data sets in the formats of the real ones. Nothing here uses a network."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.image_classification import mnist as tfds_mnist

from resnet_jax.data import DATASETS
from resnet_jax.data import prepare as prepare_lib
from resnet_jax.data.prepare import main, prepare
from resnet_jax.data.splits import load_splits
from resnet_jax.errors import UserError
from tests.data.tfds_files import WRITERS, assert_reads_back, by_image, contents, write_cifar10, write_idx

pytestmark = pytest.mark.usefixtures("tiny_data_sets", "no_network")

IDX_FILES = [f"{split}-{what}.gz" for split in ("t10k", "train") for what in ("images-idx3-ubyte", "labels-idx1-ubyte")]


def run_prepare(*args):
    prepare(args[0], *map(str, args[1:]))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn_cropped"])
def test_every_pixel_and_label_reads_back_as_it_was_written(name, tmp_path, capsys):
    examples = WRITERS[name](tmp_path / "files")
    run_prepare(name, tmp_path / "data", tmp_path / "files")
    assert_reads_back(name, tmp_path / "data", examples)
    screen = capsys.readouterr().out
    assert str(tmp_path / "data" / name) in screen
    assert "train 30" in screen and "test 20" in screen
    chosen = "--config.data.name=svhn_cropped" if name == "svhn_cropped" else f"--config=configs/{name}.py"
    assert (
        f"python train.py {chosen} --config.data.data_dir={tmp_path / 'data'}" in screen
    )  # the recipe, if there is one


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_whole_splits_are_read_into_memory_as_they_were_written(name, tmp_path):
    examples = WRITERS[name](tmp_path / "files")
    run_prepare(name, tmp_path / "data", tmp_path / "files")
    splits = load_splits(name, 4, str(tmp_path / "data"))
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 26, "validation": 4, "test": 20}
    assert by_image(splits["test"].images, splits["test"].labels) == by_image(*examples["test"])
    parts = [splits[split] for split in ("train", "validation")]
    images, labels = (np.concatenate([getattr(part, field) for part in parts]) for field in ("images", "labels"))
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    assert by_image(images, labels) == by_image(*examples["train"])


def test_data_sets_whose_files_have_the_same_names_do_not_mix(tmp_path):
    examples = {name: write_idx(tmp_path / name, seed) for seed, name in enumerate(("mnist", "kmnist"))}
    for name in examples:
        run_prepare(name, tmp_path / "data", tmp_path / name)
    for name, written in examples.items():
        assert_reads_back(name, tmp_path / "data", written)


def test_the_users_folder_is_only_read_and_nothing_but_the_data_set_is_left(tmp_path):
    write_idx(tmp_path / "files")
    before = contents(tmp_path / "files")
    run_prepare("mnist", tmp_path / "data", tmp_path / "files")
    assert contents(tmp_path / "files") == before
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mnist"]
    assert [path.name for path in (tmp_path / "data" / "mnist").iterdir()] == ["3.0.1"]


def test_only_files_with_another_checksum_are_reported_with_both_checksums(tmp_path, capsys, monkeypatch):
    examples = write_idx(tmp_path / "files")
    registered = tfds.builder_cls("mnist").url_infos
    for url in registered:
        if "labels" in url:  # these two are made the files that TFDS registers
            path = tmp_path / "files" / url.rsplit("/", 1)[-1]
            monkeypatch.setitem(registered, url, checksums.compute_url_info(path))
    run_prepare("mnist", tmp_path / "data", tmp_path / "files")
    screen = capsys.readouterr().out
    for url, info in registered.items():
        path = tmp_path / "files" / url.rsplit("/", 1)[-1]
        found = checksums.compute_url_info(path).checksum
        for said in (f"warning: {path} ", f"expected: {info.checksum}", f"found:    {found}"):
            assert (said in screen) == ("images" in url), said
    assert_reads_back("mnist", tmp_path / "data", examples)


def test_a_missing_file_is_named_with_its_url_and_a_present_one_is_not(tmp_path):
    write_idx(tmp_path / "files")
    for name in IDX_FILES[:2]:
        (tmp_path / "files" / name).unlink()
    with pytest.raises(UserError) as error:
        run_prepare("mnist", tmp_path / "data", tmp_path / "files")
    assert str(tmp_path / "files") in str(error.value)
    for name in IDX_FILES:
        assert (f"  {name}  https://storage.googleapis.com/" in str(error.value)) == (name in IDX_FILES[:2])
    assert not (tmp_path / "data").exists()


def test_a_download_without_a_network_says_what_to_fetch_and_the_next_call_works(tmp_path, monkeypatch, caplog):
    with pytest.raises(UserError) as error:
        run_prepare("kmnist", tmp_path / "data")
    assert "--downloads" in str(error.value)
    for name in IDX_FILES:
        assert f"http://codh.rois.ac.jp/kmnist/dataset/kmnist/{name}" in str(error.value)
    assert not [record for record in caplog.records if record.name.startswith("urllib3")]  # one message, not drowned
    examples = write_idx(tmp_path / "files")
    run_prepare("kmnist", tmp_path / "data", tmp_path / "files")
    assert_reads_back("kmnist", tmp_path / "data", examples)


def test_a_corrupt_file_is_named_and_the_next_call_works(tmp_path):
    examples = write_idx(tmp_path / "files")
    corrupt = tmp_path / "files" / IDX_FILES[2]
    whole = corrupt.read_bytes()
    corrupt.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"mnist could not be made from the files in .*(?s:.*){IDX_FILES[2]}"):
        run_prepare("mnist", tmp_path / "data", tmp_path / "files")
    corrupt.write_bytes(whole)
    run_prepare("mnist", tmp_path / "data", tmp_path / "files")
    assert_reads_back("mnist", tmp_path / "data", examples)


def test_after_an_interruption_the_next_call_works(tmp_path, monkeypatch):
    examples = write_idx(tmp_path / "files")

    def interrupted(self, **kwargs):
        yield 0, {"image": examples["train"][0][0], "label": 0}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(tfds_mnist.MNIST, "_generate_examples", interrupted)
        main(["mnist", "--data_dir", str(tmp_path / "data"), "--downloads", str(tmp_path / "files")])
    assert stop.value.code == 130
    run_prepare("mnist", tmp_path / "data", tmp_path / "files")
    assert_reads_back("mnist", tmp_path / "data", examples)


def test_a_split_of_another_size_is_an_error_and_the_next_call_works(tmp_path):
    write_cifar10(tmp_path / "short", sizes={"train": 29, "test": 20})
    with pytest.raises(UserError, match=r"cifar10 should have the splits .*'train': 30.*'train': 29"):
        run_prepare("cifar10", tmp_path / "data", tmp_path / "short")
    examples = write_cifar10(tmp_path / "files")
    run_prepare("cifar10", tmp_path / "data", tmp_path / "files")
    assert_reads_back("cifar10", tmp_path / "data", examples)


def test_what_is_prepared_already_is_reported_checked_and_left_alone(tmp_path, capsys, monkeypatch):
    write_idx(tmp_path / "files")
    run_prepare("mnist", tmp_path / "data", tmp_path / "files")
    before = contents(tmp_path / "data")
    capsys.readouterr()

    monkeypatch.setattr(prepare_lib.importlib.util, "find_spec", lambda name: None)  # this needs no TensorFlow
    main(["mnist", "--data_dir", str(tmp_path / "data")])
    screen = capsys.readouterr().out
    assert f"mnist is prepared already: {tmp_path / 'data' / 'mnist' / '3.0.1'}" in screen
    assert "train 30" in screen and "train.py" in screen

    info = dataclasses.replace(DATASETS["mnist"], splits={"train": 31, "test": 20})
    monkeypatch.setitem(DATASETS, "mnist", info)
    with pytest.raises(UserError, match=f"mnist should have .*Delete {tmp_path / 'data'}"):
        run_prepare("mnist", tmp_path / "data")
    assert contents(tmp_path / "data") == before

    info = tmp_path / "data" / "mnist" / "3.0.1" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(
        UserError, match="mnist cannot be prepared there: .*give their --data_dir as --tfrecord, and another --data_dir"
    ):
        run_prepare("mnist", tmp_path / "data")


def test_without_tensorflow_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_lib.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        run_prepare("mnist", tmp_path / "data")
    assert "pip install -r requirements-prepare.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_name_gets_the_right_one_suggested(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fashionmnist"])
    assert stop.value.code == 2
    assert "did you mean 'fashion_mnist'?" in capsys.readouterr().err


def test_digits_need_no_preparation(capsys):
    main(["digits"])
    assert "digits needs no preparation" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, info in DATASETS.items() if info.tfds_name])
def test_tfds_registers_the_files_of_each_data_set_so_that_they_can_be_named(name):
    assert tfds.builder_cls(DATASETS[name].tfds_name).url_infos


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_class_names_are_those_of_tfds_in_its_order(name, tmp_path):
    assert tuple(tfds.builder(name, data_dir=tmp_path).info.features["label"].names) == DATASETS[name].class_names


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    write_idx(tmp_path / "files")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="mnist could not be written to"):
        run_prepare("mnist", tmp_path / "file" / "data", tmp_path / "files")
