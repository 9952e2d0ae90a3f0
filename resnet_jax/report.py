"""Pictures of runs. The only file that imports matplotlib."""

import pathlib

import matplotlib

matplotlib.use("Agg")  # files only, no screen
import matplotlib.pyplot as plt

from resnet_jax.logs import read_metrics

_STYLES = {"train": ("C0", "-", 1.0), "validation": ("C1", "--", 2.0), "test": ("C2", "none", 0)}


def plot_curves(workdir: str | pathlib.Path, target: str | pathlib.Path) -> None:
    """Loss, accuracy and learning rate of a run against epochs, as a picture file `target`."""
    lines = read_metrics(pathlib.Path(workdir) / "metrics.jsonl")
    figure, (loss, accuracy, rate) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for axes, name, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for split, (color, style, width) in _STYLES.items():
            points = [(line["epoch"], line[name] * scale) for line in lines if line["split"] == split]
            if points:
                marker = "o" if split == "test" else None
                axes.plot(*zip(*points, strict=True), color=color, ls=style, lw=width, marker=marker, label=split)
        axes.legend()
    loss.set(title="Loss", ylabel="cross-entropy, nats", yscale="log")
    accuracy.set(title="Accuracy", ylabel="top-1 accuracy, %")
    points = [(line["epoch"], line["learning_rate"]) for line in lines if line["split"] == "train"]
    rate.plot(*zip(*points, strict=True), color="black")
    rate.set(title="Learning rate", ylabel="learning rate")
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    figure.savefig(target, dpi=120)
    plt.close(figure)
