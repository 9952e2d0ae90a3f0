"""Configs that cannot run, as a command line gives them: refused before anything compiles, by the name of the field."""

import pytest

from resnet_jax import UserError
from resnet_jax.config.build import Assembly, make_recipe, resolve
from resnet_jax.config.flags import parse_training

# (argument, what the message names)
BAD = [
    ("dtype=float16", "dtype"),
    ("seed=-1", "seed"),
    ("seed=4294967296", "seed"),
    ("head=old", "head"),
    ("head=new", "head"),
    ("freeze=conv1", "freeze"),
    ("model.name=resnet21", "model.name"),
    ("model.name=resnet18", "too small"),
    ("model.shortcut=E", "model.shortcut"),
    ("model.stem=big", "model.stem"),
    ("model.downsample=pool", "model.downsample"),
    ("model.num_classes=7", "model.num_classes"),
    ("model.stochastic_depth=1.0", "model.stochastic_depth"),
    ("model.width=3", "model.width"),
    ("norm.name=layer", "norm.name"),
    ("norm.groups=0", "norm.groups"),
    ("norm.scope=world", "norm.scope"),
    ("norm.group_size=0", "norm.group_size"),
    ("norm.momentum=1.0", "norm.momentum"),
    ("norm.epsilon=0.0", "norm.epsilon"),
    ("data.name=digit", "data.name"),
    ("data.name=folder", "data.loader"),
    ("data.loader=disk", "data.loader"),
    ("data.validation_size=1437", "data.validation_size"),
    ("data.validation_size=-1", "data.validation_size"),
    ("data.verify=all", "data.verify"),
    ("data.image_size=100000", "data.image_size"),
    ("data.normalization=none", "data.normalization"),
    ("data.normalization=weights", "data.normalization"),
    ("data.workers=fibers", "data.workers"),
    ("data.num_workers=0", "data.num_workers"),
    ("data.max_corrupt=1.0", "data.max_corrupt"),
    ("data.test_size=0.0", "data.test_size"),
    ("augment.view=random_resized", "augment.view"),
    ("augment.policy=autoaugment", "augment.policy"),
    ("augment.num_ops=17", "augment.num_ops"),
    ("augment.magnitude=31", "augment.magnitude"),
    ("augment.repeats=2", "augment.repeats"),
    ("augment.pad_crop=-1", "augment.pad_crop"),
    ("augment.erasing=1.1", "augment.erasing"),
    ("augment.mixup=nan", "augment.mixup"),
    ("augment.jitter=(1.0,)", "augment.jitter"),
    ("augment.lighting=0.1", "augment.lighting"),
    ("augment.area=(1.0,0.5)", "augment.area"),
    ("train.batch_size=0", "train.batch_size"),
    ("train.batch_size=100000", "train.batch_size"),
    ("train.steps=0", "train.steps"),
    ("train.epochs=-1.0", "train.epochs"),
    ("train.epochs=1e308", "train.epochs"),
    ("train.loss=mse", "train.loss"),
    ("train.bce_threshold=0.2", "train.bce_threshold"),
    ("train.class_weights=1,2", "train.class_weights"),
    ("train.label_smoothing=1.0", "train.label_smoothing"),
    ("train.grad_accum_steps=3", "train.grad_accum_steps"),
    ("train.ema_decay=1.0", "train.ema_decay"),
    ("train.steps_per_call=3", "log.every_steps"),
    ("train.nonfinite=ignore", "train.nonfinite"),
    ("train.max_nonfinite=0", "train.max_nonfinite"),
    ("train.watchdog_seconds=-1", "train.watchdog_seconds"),
    ("optim.name=adam2", "optim.name"),
    ("optim.lr=nan", "optim.lr"),
    ("optim.lr=abc", "optim.lr"),
    ("optim.lrr=0.1", "optim.lrr"),
    ("optim.lr_scaling=sqrt", "optim.lr_scaling"),
    ("optim.momentum=1.0", "optim.momentum"),
    ("optim.b2=-0.1", "optim.b2"),
    ("optim.weight_decay=-1.0", "optim.weight_decay"),
    ("optim.weight_decay_mode=l1", "optim.weight_decay_mode"),
    ("optim.weight_decay_params=kernle", "optim.weight_decay_params"),
    ("optim.weight_decay_params=(", "optim.weight_decay_params"),
    ("optim.schedule=linearly", "optim.schedule"),
    ("optim.milestones=(1.5,)", "optim.milestones"),
    ("optim.warmup_epochs=1000.0", "optim.warmup"),
    ("optim.clip_norm=-1.0", "optim.clip_norm"),
    ("optim.peak_fraction=1.0", "optim.peak_fraction"),
    ("parallel.devices=99", "parallel.devices"),
    ("parallel.wrapper=vmap", "parallel.wrapper"),
    ("parallel.check_every_steps=0", "parallel.check_every_steps"),
    ("parallel.heartbeat_seconds=0", "parallel.heartbeat_seconds"),
    ("eval.batch_size=0", "eval.batch_size"),
    ("eval.every_epochs=0.0", "eval.every_epochs"),
    ("eval.crop_fraction=0.0", "eval.crop_fraction"),
    ("eval.interpolation=nearest", "eval.interpolation"),
    ("eval.image_size=32", "eval.image_size"),
    ("diagnostics.layer=True", "diagnostics.layer"),
    ("checkpoint.keep=0", "checkpoint.keep"),
    ("checkpoint.best_metric=f1", "checkpoint.best_metric"),
    ("checkpoint.best_metric=ema_loss", "checkpoint.best_metric"),
    ("checkpoint.every_minutes=-1", "checkpoint.every_minutes"),
    ("checkpoint.on_error=ignore", "checkpoint.on_error"),
    ("log.every_steps=0", "log.every_steps"),
]


@pytest.mark.parametrize(("argument", "field"), BAD, ids=[argument for argument, _ in BAD])
def test_a_config_that_cannot_run_is_refused_by_its_field(argument, field, monkeypatch, tmp_path):
    monkeypatch.setattr("jax.jit", lambda *a, **k: pytest.fail("compiled"))
    with pytest.raises(UserError) as refused:
        config, _, _ = parse_training(["train.py", f"--config.{argument}", f"--workdir={tmp_path}"], "")
        config = resolve(config)
        Assembly(make_recipe(config))
    assert field in str(refused.value) and len(str(refused.value).splitlines()) <= 3


def test_the_list_is_as_long_as_was_promised():
    assert len({argument for argument, _ in BAD}) == len(BAD) >= 60
