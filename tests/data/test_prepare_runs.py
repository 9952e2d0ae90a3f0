"""Whole runs on data sets that were prepared: training, and evaluation on other sets."""

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from resnet_jax import evaluate, train
from resnet_jax.data import DATASETS
from resnet_jax.data import tfds as tfds_sources
from resnet_jax.data.prepare import main, prepare
from tests.data.tfds_files import store, write_cifar10, write_imagenet
from tests.tiny import build, tiny_config

pytestmark = pytest.mark.usefixtures("tiny_data_sets", "no_network")


def test_a_net_is_trained_on_imagenet_as_it_was_prepared(tmp_path, monkeypatch):
    write_imagenet(tmp_path / "manual")
    main(["imagenet2012", "--data_dir", str(tmp_path / "data"), "--manual", str(tmp_path / "manual")])
    monkeypatch.setitem(tfds_sources.NAMED, "imagenet2012", ("validation", {"train": 8, "test": 4}))
    config = tiny_config(data__name="imagenet2012", data__data_dir=str(tmp_path / "data"), data__loader="stream")
    config.update(model={"stem": "small"}, data={"image_size": 16, "validation_size": 0}, train={"batch_size": 4})
    _, program, state = build(config)
    assert len(program.evaluate(state.variables, "test")["loss"]) == 4
    _, sums = program.train_steps(1)(state, program.inputs(0))
    assert np.isfinite(sums["loss"]).all()


def test_a_net_is_evaluated_on_corrupted_images(tmp_path, capsys):
    names = DATASETS["cifar10"].class_names
    for severity in (1, 2):
        records = [(20 * i, i) for i in range(10)]
        store(f"cifar10_corrupted/fog_{severity}", tmp_path, "test", "label", records, names, size=32)
    prepare("cifar10_corrupted/fog_1", str(tmp_path))
    command = f"python -m resnet_jax.evaluate WORKDIR --data cifar10_corrupted/fog_1 --data_dir {tmp_path}"
    assert command in capsys.readouterr().out
    write_cifar10(tmp_path / "files")
    prepare("cifar10", str(tmp_path), str(tmp_path / "files"))
    config = tiny_config(data__name="cifar10", data__data_dir=str(tmp_path), data__validation_size=0, train__steps=2)
    config.train.batch_size = 8
    train(config, tmp_path / "run")
    capsys.readouterr()
    sets = [f"cifar10_corrupted/fog_{severity}" for severity in (1, 2)]
    evaluate.main([str(tmp_path / "run"), "--step", "latest", "--data", *sets])
    screen = capsys.readouterr().out
    assert screen.count("10 examples") == 2 and "mean of 2: accuracy" in screen
    with pytest.raises(SystemExit):
        evaluate.main([str(tmp_path / "run"), "--step", "latest", "--data", "cifar10_corrupted"])
    assert "python -m resnet_jax.data.prepare cifar10_corrupted/gaussian_noise_1" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # the whole benchmark, beginning with the first set
        main(["cifar10_corrupted", "--data_dir", str(tmp_path), "--downloads", str(tmp_path / "files")])
    assert "files that cifar10_corrupted/gaussian_noise_1 is made from" in capsys.readouterr().err
