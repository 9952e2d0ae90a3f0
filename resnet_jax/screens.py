"""What people see before and after a run."""

import collections
import datetime
import os
import pathlib

from rich.console import Group
from rich.table import Table

from resnet_jax.build import Run
from resnet_jax.models.profile import totals


def start_screen(run: Run, workdir: pathlib.Path) -> Table:
    """One screen: devices, model, data, length and schedule of the run, and where it will lie."""
    config = run.config
    _, multiply_adds, _ = totals(run.layers)
    devices = collections.Counter(device.device_kind for device in run.parallel.mesh.devices.flat)
    height, width, channels = run.image_shape
    splits = ", ".join(f"{len(examples):,} {name}" for name, examples in run.splits.items())
    scaled = f" ({config.optim.lr} scaled to the batch)" if config.optim.lr_scaling != "none" else ""
    warmup = f", {run.warmup_steps:,} steps of warm-up" if run.warmup_steps else ""
    return _two_columns(
        "resnet_jax",
        {
            "devices": ", ".join(f"{count} x {kind}" for kind, count in devices.items())
            + f", {config.parallel.wrapper}, {config.norm.scope} batch statistics",
            "model": f"{config.model.name}, {config.precision}",
            "parameters": f"{run.num_parameters:,}",
            "multiply-adds": f"{multiply_adds:,} per image",
            "data": f"{config.data.name}: {splits}; {run.facts.num_classes} classes, {height}x{width}x{channels}",
            "steps": f"{run.num_steps:,} of {config.train.batch_size} images, {run.epoch(run.num_steps):.1f} epochs",
            "optimizer": f"{config.optim.name}, weight decay {config.optim.weight_decay} "
            f"({config.optim.weight_decay_mode}, on {config.optim.weight_decay_params})",
            "schedule": f"{config.optim.schedule}, learning rate {run.peak_lr:g}{scaled}{warmup}",
            "workdir": str(workdir),
        },
    )


def end_screen(result: dict, workdir: pathlib.Path) -> Group:
    """Best and last scores, the time taken, where everything lies and what to try next."""
    rate = result["images_per_second"]
    folder = min(os.path.relpath(workdir), str(workdir), key=len)  # short enough to be copied from one line
    return Group(
        _scores(result),
        _two_columns(
            None,
            {
                "time": f"{datetime.timedelta(seconds=round(result['seconds']))}"
                + (f", training at {rate:,.0f} images/s" if rate else ""),
                "curves": os.path.join(folder, "curves.png"),
                "metrics": os.path.join(folder, "metrics.jsonl"),
                "checkpoints": os.path.join(folder, "checkpoints"),
                "try next": f"python -m resnet_jax.evaluate {folder}\ntensorboard --logdir {folder}",
            },
        ),
    )


def _scores(result: dict) -> Table:
    table = Table(title=f"Results on {result['data']}", title_justify="left")
    for column in ("weights", "step", "split", "accuracy", "top-5", "loss"):
        table.add_column(column, justify="left" if column in ("weights", "split") else "right")
    for weights in ("last", "best"):
        for split in ("train", "validation", "test"):
            for prefix, note in (("", ""), ("ema_", ", moving average")):
                values = result[weights].get(split) or {}
                if f"{prefix}accuracy" in values:
                    table.add_row(
                        weights + note,
                        f"{result[weights]['step']:,}",
                        "train, while training" if split == "train" else split,
                        f"{values[f'{prefix}accuracy']:.2%}",
                        f"{values[f'{prefix}top5']:.2%}",
                        f"{values[f'{prefix}loss']:.4f}",
                    )
    return table


def _two_columns(title: str | None, rows: dict[str, str]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table
