"""Score a run: python -m resnet_jax.evaluate WORKDIR [--split test] [--step best|latest|N]"""

import argparse

from rich.console import Console
from rich.table import Table

from resnet_jax.build import Run
from resnet_jax.environment import use_compilation_cache
from resnet_jax.errors import UserError, command_line
from resnet_jax.metrics import means, per_class_accuracy
from resnet_jax.runs import load_checkpoint
from resnet_jax.workdir import read_config


def evaluate(workdir: str, split: str = "test", step: str | int = "best", *, ema: bool = False) -> dict:
    """Score a checkpoint on a split, every example exactly once.

    Args:
      workdir: of the run.
      split: "train", "validation" or "test".
      step: "best" on the validation split, "latest", or a number.
      ema: score the moving average of the weights.

    Returns:
      {"loss", "accuracy", "top5", "count", "per_class": {class name: accuracy}}.

    Raises:
      UserError: no run, no such split or step, a damaged checkpoint, data that are not prepared.
    """
    use_compilation_cache()
    _, variables = load_checkpoint(workdir, step, ema=ema)
    config = read_config(workdir)
    # One device, so that nothing is asked of the batch that the run was trained with, or of this machine.
    config.parallel.devices, config.norm.scope = 1, "local"
    run = Run(config)
    if split not in run.splits:
        raise UserError(f"--split: expected one of {', '.join(run.splits)}, found {split!r}")
    sums = run.evaluate(run.parallel.replicate(variables), split)
    per_class = dict(zip(run.facts.class_names, map(float, per_class_accuracy(sums)), strict=True))
    return {**means(sums), "count": int(sums["count"]), "per_class": per_class}


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m resnet_jax.evaluate", description=__doc__.split(":")[0])
    parser.add_argument("workdir", help="of the run")
    parser.add_argument("--split", default="test", help="train, validation or test (default)")
    parser.add_argument("--step", default="best", help="best (default), latest or a number")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights")
    args = parser.parse_args(argv)
    with command_line():
        scores = evaluate(args.workdir, args.split, args.step, ema=args.ema)
    table = Table(title=f"{args.split}: {scores['count']:,} examples", title_justify="left")
    table.add_column("class")
    table.add_column("accuracy", justify="right")
    for name, accuracy in scores["per_class"].items():
        table.add_row(name, f"{accuracy:.2%}")
    console = Console()
    console.print(table)
    console.print(
        f"accuracy {scores['accuracy']:.4%}  top-5 {scores['top5']:.4%}  loss {scores['loss']:.6f}", highlight=False
    )


if __name__ == "__main__":
    main()
