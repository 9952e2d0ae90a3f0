"""Run a study and write its report: python -m resnet_jax.ablate --config=configs/ablations/x.py --workdir=DIR"""

import sys

from absl import flags
from rich.console import Console

from resnet_jax.commands import command_line, make_console
from resnet_jax.config.flags import is_study, parse_command, resolve_length
from resnet_jax.config.job import join_job
from resnet_jax.errors import UserError
from resnet_jax.studies.grow import add_run, write_results
from resnet_jax.studies.report import write_report
from resnet_jax.studies.run import check_failures, print_cells, run_study
from resnet_jax.studies.study import read_study
from resnet_jax.training.parallel import is_main_process
from resnet_jax.workdir import local_path


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "Folder of the study; default: its name in runs/.", flag_values=values)
    flags.DEFINE_integer("cell", None, "Run this cell alone, and write no report.", flag_values=values)
    flags.DEFINE_string("add", None, "Copy a run that was trained alone into the study.", flag_values=values)
    flags.DEFINE_bool("report", False, "Write the report of what is there, and run nothing.", flag_values=values)
    flags.DEFINE_bool("list", False, "Show the cells and the time they take, and run nothing.", flag_values=values)


def _report(workdir, console: Console) -> None:
    study = read_study(workdir)
    write_results(workdir)
    write_report(study, workdir)
    console.print(f"report: {workdir / 'report.html'}", highlight=False, soft_wrap=True)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with command_line():
        command = parse_command(argv or sys.argv, "ablations/digits", __doc__, _define)
        values, study = command.values, command.config
        if not is_study(study):
            raise UserError("--config: expected a study like configs/ablations/digits.py, found an experiment")
        resolve_length(study.experiment, (key.removeprefix("experiment.") for key in command.overrides))
        join_job(study.experiment, command.address)
        console = make_console(quiet=not is_main_process())
        workdir = local_path(values.workdir or f"runs/ablation-{command.experiment}")
        if values.list:
            print_cells(study, workdir, console)
        elif values.add or values.report:
            if values.add:
                add_run(study, workdir, local_path(values.add))
            _report(workdir, console)
        else:
            failed = run_study(study, workdir, console, values.cell)
            if values.cell is None and is_main_process():
                _report(workdir, console)
            check_failures(failed)


if __name__ == "__main__":
    main()
