"""Check a run before it starts, here or on TPUs that are not there.

    python -m resnet_jax.doctor [--config=NAME] [--config.KEY=VALUE] [--workdir=DIR]
    python -m resnet_jax.doctor --config=configs/imagenet_resnet50.py --topology=v5e:16x16    # pip install libtpu

The first checks this machine: devices, versions, memory, speed of the input, disk, workdir. The second compiles the
steps of a run for a slice of TPUs, and prints what they need and how fast they can be at the most; --topology=here does
so for the devices of this machine.
"""

import sys

from resnet_jax.commands import command_line, make_console, print_whole
from resnet_jax.config.flags import parse_check


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with command_line():
        argv = [__spec__.name, *argv] if argv is not None else sys.argv
        config, topology, workdir = parse_check(argv, __doc__)
        console = make_console(file=sys.stderr)  # for what takes time
        if topology:
            table = _plan(config, topology, lambda text: console.print(f"compiling {text}"))
        else:
            table = _check(config, workdir, console.print)
        from resnet_jax.training.parallel import is_main_process  # on use: --help should not wait for it

        print_whole(make_console(quiet=not is_main_process()), table)


def _plan(config, topology, watch):
    from resnet_jax.config.plan import planned_recipe
    from resnet_jax.planning.plan import make_plan
    from resnet_jax.planning.tables import plan_table
    from resnet_jax.planning.topology import find_devices

    devices = find_devices(topology)  # first: what follows starts JAX's backends
    return plan_table(make_plan(planned_recipe(config), devices, watch), topology)


def _check(config, workdir, watch):
    from resnet_jax.planning.local import check_machine
    from resnet_jax.planning.tables import check_table

    return check_table(list(check_machine(config, workdir, watch)))


if __name__ == "__main__":
    main()
