"""The command that checks a run before it starts."""

import importlib.util

import pytest

from resnet_jax import doctor


def refused(capsys, *arguments):
    """The one line of an error."""
    with pytest.raises(SystemExit) as end:
        doctor.main(list(arguments))
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_mistakes_are_one_line_each(capsys):
    assert "found no nowhere" in refused(capsys, "--config=nowhere")
    assert "did you mean 'topology'" in refused(capsys, "--topolgy=v5e:2x2")
    assert "did you mean 'batch_size'" in refused(capsys, "--config.train.batch_sizes=8")
    assert "expected an experiment, found a study" in refused(capsys, "--config=ablations/digits")


def test_without_the_compiler_of_tpus_the_package_to_install_is_named(capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find_spec(name))
    assert refused(capsys, "--topology=v5e:2x2").endswith("needs the TPU compiler, found none; pip install libtpu")


def test_a_batch_that_the_devices_cannot_divide_is_refused_before_anything_is_compiled(capsys):
    line = refused(capsys, "--topology=here", "--config.train.batch_size=30")
    assert "train.batch_size: expected a multiple of the 4 devices" in line


def test_the_help_explains_both_uses(capsys):
    with pytest.raises(SystemExit) as end:
        doctor.main(["--help"])
    assert not end.value.code and "--topology=v5e:16x16" in capsys.readouterr().out
