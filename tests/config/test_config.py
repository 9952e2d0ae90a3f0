import contextlib
import functools
import pathlib
import re
import subprocess
import sys

import pytest

from resnet_jax import UserError
from resnet_jax.config import default
from resnet_jax.config.build import Assembly, make_recipe
from resnet_jax.config.checks import check_config, check_devices
from resnet_jax.config.flags import get_config, parse_training
from resnet_jax.config.stored import flatten
from resnet_jax.data.info import DATASETS
from tests.tiny import tiny_config

ROOT = pathlib.Path(__file__).parent.parent.parent
EXPERIMENTS = sorted(path for path in (ROOT / "configs").glob("*.py"))


def parse(*arguments):
    return parse_training(["train.py", *map(str, arguments)], "")[:2]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_is_valid_and_says_how_to_run_it(path):
    config, _ = parse(f"--config={path}", "--workdir=x")
    check_config(config)
    check_devices(config, available=4)
    text = path.read_text()
    assert "python train.py" in text
    for what in ("Hardware:", "Time:", "Result:"):
        assert what in text


def test_the_promised_experiments_are_there():
    promised = {"default", "fashion_mnist", "fashion_mnist_d2l", "cifar10_he2015", "cifar10", "cifar100"}
    assert promised <= {path.stem for path in EXPERIMENTS}


def test_the_promised_keys_are_there():
    config = default.get_config()
    promised = (
        "seed dtype model.name data.name data.loader train.batch_size train.epochs train.steps optim.name optim.lr "
        "optim.schedule optim.weight_decay norm.scope parallel.wrapper"
    )
    for key in promised.split():
        functools.reduce(lambda node, part: node[part], key.split("."), config)
    assert config.is_locked


@pytest.mark.parametrize(("net", "first_rate"), [("resnet56", 0.1), ("resnet110", 0.01)])
def test_the_papers_cifar_recipe_is_to_the_letter(net, first_rate):
    config, _ = parse(f"--config={ROOT / 'configs' / 'cifar10_he2015.py'}:{net}", "--config.parallel.devices=1")
    recipe = make_recipe(config)  # needs no image
    assert config.model.name == net
    assert (recipe.num_examples, config.data.validation_size, recipe.info.splits["test"]) == (45_000, 5_000, 10_000)
    assert recipe.num_steps == 64_000
    rates = {step: round(float(recipe.schedule(step)), 6) for step in (0, 399, 400, 31_999, 32_000, 47_999, 48_000)}
    assert rates == {0: first_rate, 399: first_rate, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001}
    assert (config.optim.weight_decay, config.optim.weight_decay_mode, config.optim.weight_decay_params) == (
        1e-4,
        "l2",
        ".*",
    )
    assert (config.optim.name, config.optim.momentum, config.optim.nesterov) == ("sgd", 0.9, False)
    assert (config.train.batch_size, config.augment.pad_crop, config.augment.flip) == (128, 4, True)


def test_overrides_reach_the_config_and_the_workdir_is_taken():
    config, workdir = parse("--config.optim.lr=0.2", "--config.model.shortcut=B", "--workdir=/tmp/x")
    assert (config.optim.lr, config.model.shortcut) == (0.2, "B")
    with workdir as folder:
        assert folder == "/tmp/x"


def test_a_new_workdir_has_the_names_of_experiment_and_model_and_is_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [parse(f"--config={ROOT / 'configs' / 'cifar10_he2015.py'}:resnet56")[1] for _ in range(3)]
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(job) for job in jobs]  # within a second, or two
        assert len(set(folders)) == 3 and all(folder.is_dir() for folder in folders)
        assert all(folder.parent == pathlib.Path("runs") for folder in folders)
        assert all(folder.name.startswith("cifar10_he2015-resnet56-2") for folder in folders)
        (folders[0] / "config.json").write_text("{}")
    assert list(pathlib.Path("runs").iterdir()) == folders[:1]  # the others, left empty, are gone


def test_processes_of_one_job_need_a_workdir():
    with pytest.raises(UserError, match="several processes need the same one; add --workdir=DIR"):
        parse("--config.parallel.distributed=True")


@pytest.mark.parametrize(
    "key",
    [
        *("model.num_classes", "model.shortcut", "data.data_dir", "data.image_size", "data.num_workers"),
        *("train.bce_threshold", "train.steps", "parallel.devices", "eval.image_size"),
    ],
)
def test_none_resets_each_key_that_may_be_none(tmp_path, key):
    section, name = key.split(".")
    value = {"shortcut": "'A'", "data_dir": "'x'", "bce_threshold": 0.5}.get(name, 7)
    path = experiment_file(tmp_path, f"config.{key} = {value}")
    assert parse(f"--config={path}")[0][section][name] is not None
    assert parse(f"--config={path}", f"--config.{key}=None")[0][section][name] is None
    assert parse(f"--config={path}", f"--config.{key}", "None")[0][section][name] is None


def test_an_experiment_is_found_by_name_from_anywhere_and_a_run_can_be_repeated(tmp_path, monkeypatch):
    expected = parse(f"--config={ROOT / 'configs' / 'cifar10_he2015.py'}:resnet56")[0].to_json()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(expected)
    monkeypatch.chdir(tmp_path)
    for name in ("cifar10_he2015:resnet56", "configs/cifar10_he2015.py:resnet56", "run/config.json"):
        assert parse(f"--config={name}")[0].to_json() == expected
        assert parse("--config", name)[0].to_json() == expected


def test_help_has_each_experiment_and_each_key_with_its_default_and_meaning(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    for path in EXPERIMENTS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {path.stem} ")]
        assert len(line.split()) > 3
    for key, value in flatten(default.get_config()).items():
        assert f"\n  {key}={value}" in text
    assert re.search(r"optim.lr=0.1 +after the warmup", text)
    assert re.search(r"data.validation_size=180.0 +Held out of the training split", text)


@pytest.mark.parametrize(
    ("arguments", "epochs", "steps"),
    [
        ([], 30.0, None),
        (["--config.train.epochs=3"], 3.0, None),
        (["--config.train.steps=7"], None, 7),
        ([f"--config={ROOT}/configs/cifar10_he2015.py", "--config.train.epochs=2"], 2.0, None),
    ],
)
def test_the_length_on_the_command_line_wins_in_either_unit(arguments, epochs, steps):
    config, _ = parse(*arguments)
    assert (config.train.epochs, config.train.steps) == (epochs, steps)


def test_a_config_file_may_annotate_its_argument_as_it_likes(tmp_path):
    for annotation in ("int | str", "Whatever", "'Literal[1]'"):
        text = f"import resnet_jax\nWhatever = list[int]\ndef get_config(seed: {annotation}):\n"
        text += "    config = resnet_jax.get_config()\n    config.seed = int(seed)\n    return config\n"
        (tmp_path / "mine.py").write_text(text)
        assert get_config(f"{tmp_path / 'mine.py'}:7").seed == 7


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optim.lrr=1", r"config.optim.lrr: there is no such key; did you mean 'lr'\?"),
        ("--config.optm.lr=1", r"config.optm.lr: there is no such key; did you mean --config.optim.lr=1\?"),
        ("--config.model.name.x=1", "config.model.name.x: there is no such key"),
        ("--config.optim.milestones[0]=1", "there is no such key"),
        ("--config.optim.lr=fast", "--config.optim.lr=fast: could not convert"),
        ("--config.train.steps=1.5", "--config.train.steps=1.5: invalid literal"),
        ("--config.augment.flip=maybe", "--config.augment.flip=maybe"),
        ("--config=nothing.py", "found no nothing.py"),
        ("--xyz=3", r"--xyz=3: there is no such flag; known: help, workdir"),
        ("--batch=3", r"did you mean --config.train.batch_size=3 or --config.eval.batch_size=3\?"),
        ("3", "found '3'"),
        ("--lr=0.1", r"there is no such flag; did you mean --config.optim.lr=0.1\?"),
        ("--epoch=3", r"did you mean --config.train.epochs=3\?"),
        ("--epochs=3", r"did you mean --config.train.epochs=3\?"),
        ("--batch-size=32", r"did you mean --config.train.batch_size=32 or --config.eval.batch_size=32\?"),
        ("--model=resnet18", r"did you mean --config.model.name=resnet18\?"),
        ("-b=64", r"did you mean --config.train.batch_size=64\?"),
        ("--workdr=x", r"did you mean 'workdir'\?"),
        ("--config.lr=0.1", r"config.lr: there is no such key; did you mean --config.optim.lr=0.1\?"),
        ("--config.model=resnet18", r"expected one of its keys, like --config.model.name=resnet18"),
        ("--config=cifar", r"found no cifar; did you mean 'cifar10"),
        ("--config", "--config: expected a name after it, found none"),
        (f"--config={ROOT / 'README.md'}", "expected a .py file, or the config.json of a run"),
        ("--config.train.batch_size=None", "config.train.batch_size: expected a value, found None"),
        ("--config=configs/finetune.py:al", "expected one of head, all after configs/finetune.py:, found 'al'"),
        ("--config=imagenet_fast:15", "expected one of 16, 88 after imagenet_fast:, found '15'"),
        (f"--config={ROOT / 'configs' / 'cifar10.py'}:big", "expected no argument after .*cifar10.py, found 'big'"),
        (f"--config={ROOT / 'configs' / 'ablations' / 'digits.py'}", "found a study; run it with"),
    ],
)
def test_a_bad_command_line_is_one_message(argument, message):
    with pytest.raises(UserError, match=message) as error:
        parse(argument)
    assert "Traceback" not in str(error.value)


def experiment_file(folder, line):
    path = folder / "mine.py"
    path.write_text(
        f"from configs import default\ndef get_config():\n  config = default.get_config()\n  {line}\n  return config\n"
    )
    return path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.optim.lrr = 1", 'Did you mean "lr"'),
        ("config.optim.lr = 'high'", "field 'lr'.*cannot be casted to type <class 'float'>"),
    ],
)
def test_a_mistake_in_an_experiment_file_is_refused(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        parse(f"--config={experiment_file(tmp_path, line)}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optim__lr": float("nan")}, "optim.lr: expected a finite number, 0 or more, found nan"),
        ({"optim__lr": -0.1}, "optim.lr: expected a finite number, 0 or more, found -0.1"),
        ({"optim__lr": float("inf")}, "optim.lr: expected a finite number"),
        ({"optim__momentum": 1.0}, "optim.momentum: expected a finite number, at least 0 and less than 1, found 1.0"),
        ({"optim__milestones": (0.5, 2.0)}, "optim.milestones: expected fractions"),
        ({"optim__warmup_steps": 30}, "the run of 30 steps, found 30 steps.*--config.optim.warmup_steps=0"),
        ({"optim__warmup_epochs": 1.0, "optim__warmup_steps": 1}, "expected at most one of them"),
        ({"optim__warmup_steps": 2, "optim__schedule": "triangular"}, "triangular"),
        ({"optim__warmup_steps": 20, "optim__schedule": "step"}, "optim.milestones: expected the first after the warm"),
        ({"optim__weight_decay_params": "kernle"}, "optim.weight_decay_params: 'kernle'"),
        ({"optim__name": "sdg"}, "optim.name.*did you mean 'sgd'"),
        ({"model__name": "resnet57"}, "model.name: expected one of its names, found 'resnet57'"),
        ({"model__num_classes": 7}, "model.num_classes: expected 10, the classes of digits, found 7"),
        ({"model__name": "resnet18"}, "8x8 is too small for this model's strides"),
        ({"data__name": "digit"}, "did you mean 'digits'"),
        ({"data__loader": "strem"}, "data.loader"),
        ({"data__validation_size": 1437}, "data.validation_size: expected fewer than the 1437"),
        ({"augment__sizes": ((0.0, 100_000),)}, "augment.sizes"),
        ({"augment__sizes": (("a", 128),)}, "augment.sizes"),
        ({"data__image_size": 100_000}, "data.image_size: expected a finite number, 1 to 8192"),
        ({"data__num_workers": 100_000}, "data.num_workers: expected a finite number, 1 to 1024"),
        ({"train__epochs": 1e308, "train__steps": None}, "train.epochs"),
        ({"train__epochs": 1e9, "train__steps": None}, "fewer than 2..31 steps"),
        ({"eval__every_epochs": 1e308}, "eval.every_epochs"),
        ({"augment__num_ops": 1000}, "augment.num_ops"),
        ({"train__batch_size": 0}, "train.batch_size: expected a finite number, at least 1"),
        (
            {"train__batch_size": 62, "parallel__devices": 4},
            "train.batch_size: expected a multiple of the 4 devices, found 62",
        ),
        ({"train__epochs": 1.0}, "train.epochs, train.steps: expected one of them, found 1.0 and 30"),
        ({"train__steps": None}, "train.epochs, train.steps: expected one of them, found None and None"),
        ({"train__grad_accum_steps": 3}, "train.grad_accum_steps: expected a divisor of 64"),
        ({"train__batch_size": 63, "augment__mixup": 0.2}, "expected an even number of images per device, found 63"),
        ({"parallel__devices": 99}, "parallel.devices: expected at most the 4"),
        (
            {"parallel__devices": 4, "norm__scope": "group", "norm__group_size": 3},
            "norm.group_size: expected a divisor",
        ),
        ({"checkpoint__best_metric": "f1"}, "checkpoint.best_metric"),
        ({"checkpoint__best_metric": "ema_accuracy"}, "needs train.ema_decay above 0"),
        ({"dtype": "float16"}, "dtype"),
        (
            {"model__scan_blocks": True, "optim__name": "lars"},
            "optim.name: expected sgd or adamw with model.scan_blocks",
        ),
        (
            {"model__scan_blocks": True, "optim__weight_decay_params": "block2/conv1"},
            "optim.weight_decay_params: expected a pattern of stages and layers with model.scan_blocks",
        ),
        ({"model__scan_blocks": True, "optim__lr_factors": (("block1", 0.1),)}, "optim.lr_factors: expected a pattern"),
        (
            {"model__scan_blocks": True, "diagnostics__lesions": True},
            "diagnostics.lesions: expected False with model.sc",
        ),
        ({"model__scan_blocks": True, "model__stochastic_depth": 0.1}, "model.stochastic_depth: expected 0 with scan_"),
    ],
)
def test_a_config_that_cannot_run_is_refused_with_the_field_before_anything_compiles(overrides, message, monkeypatch):
    monkeypatch.setattr("jax.jit", lambda *a, **k: pytest.fail("compiled"))
    with pytest.raises(UserError, match=message):
        Assembly(make_recipe(tiny_config(**overrides)))


def test_every_number_in_the_config_is_checked():
    from resnet_jax.config.checks import _CHOICES, _RANGES

    checked = {field for _, fields in _RANGES.values() for field in fields.split()} | _CHOICES.keys()
    elsewhere = (
        "model.num_classes optim.milestones data.name augment.area augment.short_sides augment.sizes augment.jitter "
        "train.class_weights optim.lr_factors"
    )
    free = {"parallel.distributed", "data.data_dir", "init_from", "freeze", "optim.weight_decay_params"}  # text
    for section, values in default.get_config().items():
        for key in values if hasattr(values, "keys") else [None]:
            field = section if key is None else f"{section}.{key}"
            value = values if key is None else values[key]
            assert field in checked | set(elsewhere.split()) | free or isinstance(value, bool), field


@pytest.mark.slow
def test_the_command_refuses_bad_input_with_status_2_and_no_traceback(tmp_path):
    for argument in ("--config.optim.lr=nan", "--config.optim.lrr=1", "--config.data.name=kmnist"):
        command = [
            sys.executable,
            ROOT / "train.py",
            argument,
            f"--config.data.data_dir={tmp_path}",
            f"--workdir={tmp_path}/run",
        ]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == 2
        assert process.stderr.startswith("error: ")
        assert "Traceback" not in process.stderr
        assert not (tmp_path / "run").exists()
    assert "python -m resnet_jax.data.prepare kmnist" in process.stderr


def test_facts_know_every_data_set_that_was_promised():
    assert {"digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn_cropped"} <= DATASETS.keys()
