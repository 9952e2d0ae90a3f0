"""Plans and checks as tables."""

import collections
from collections.abc import Sequence

from rich.table import Table

from resnet_jax.commands import titled_table
from resnet_jax.device_memory import size_text
from resnet_jax.planning.local import Check
from resnet_jax.planning.plan import Plan, StepPlan

_BINDS = {"compute": "FLOP", "memory": "memory traffic", "network": "network"}


def plan_table(plan: Plan, where: str) -> Table:
    """A plan for people.

    Args:
      plan: from `make_plan`.
      where: topology, as it was given.
    """
    kinds = collections.Counter(device.device_kind for device in plan.devices)
    devices = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    hosts = len({device.process_index for device in plan.devices})
    model, data = plan.recipe.model_settings["name"], plan.recipe.data_name
    table = titled_table(f"{model} on {data}, {devices} ({where}, {hosts} host{'s' * (hosts > 1)}): compiled, not run")
    table.add_column("of each device, unless it says otherwise")
    for name in ("train step", "evaluation step"):
        table.add_column(name, justify="right")
    for row in (*_batch_rows(plan), *_memory_rows(plan), *_cost_rows(plan)):
        table.add_row(*row)
    table.add_section()
    for name, value in (*_network_rows(plan), *_bound_rows(plan)):
        table.add_row(name, value)
    return table


def _steps(plan: Plan) -> tuple[StepPlan, StepPlan]:
    return plan.train, plan.evaluation


def _batch_rows(plan):
    devices = len(plan.devices)
    if plan.train.batch != plan.recipe.batch_size:
        yield "images of all devices, by the config", f"{plan.recipe.batch_size:,}, DOES NOT FIT", ""
    yield "images of all devices", *(f"{step.batch:,}" for step in _steps(plan))
    yield "images", *(f"{step.batch // devices:,}" for step in _steps(plan))


def _memory_rows(plan):
    parts = {
        "arguments (state, data)": "arguments",
        "outputs": "outputs",
        "of these in the place of arguments": "aliased",
        "temporaries": "temporaries",
        "code": "code",
        "beside them (other data, batches ahead)": "beside",
    }
    for title, name in parts.items():
        yield title, *(size_text(getattr(step, name)) for step in _steps(plan))
    yield "memory in all", *(size_text(step.memory) for step in _steps(plan))
    if plan.available:
        yield "of what it has", *(_share(step.memory, plan.available) for step in _steps(plan))


def _share(needed, available):
    fits = "" if needed <= available else ", DOES NOT FIT"
    return f"{needed / available:.0%} of {size_text(available)}{fits}"


def _cost_rows(plan):
    devices = len(plan.devices)
    yield "FLOP for an image", *(f"{step.flop * devices / step.batch / 1e9:,.3g} G" for step in _steps(plan))
    yield "memory traffic for an image", *(_traffic(step, devices) for step in _steps(plan))
    yield "compile time", *(f"{step.seconds:.0f} s" for step in _steps(plan))
    yield "collectives", *(_collectives(step) for step in _steps(plan))


_UNREAD = "jaxlib cannot read the program"


def _traffic(step, devices):
    return _UNREAD if step.traffic is None else size_text(step.traffic * devices / step.batch)


def _collectives(step):
    if step.collectives is None:
        return _UNREAD
    return _exchanges(step.collectives) or "none"


def _exchanges(found):
    return ", ".join(f"{each.count} {kind} of {size_text(each.size)}" for kind, each in found.items())


def _network_rows(plan):
    summed = {name: size for name, size in plan.train.summed.items() if size}
    yield "to be summed", ", ".join(f"{name} {size_text(size)}" for name, size in summed.items())
    if len(plan.devices) > 1 and plan.train.collectives is not None:
        yield "", check_collectives(plan.train)


def check_collectives(train: StepPlan) -> str:
    """Traffic between the devices in a train step beside what has to be, in words."""
    others = {kind: found for kind, found in train.collectives.items() if kind != "all-reduce"}
    expected, reduced = sum(train.summed.values()), train.collectives.get("all-reduce")
    size = reduced.size if reduced else 0
    words = []
    if others:
        words.append(
            "ALSO: " + ", ".join(f"{found.count} {kind} of {size_text(found.size)}" for kind, found in others.items())
        )
    if size > expected:
        words.append(f"MORE is summed, by {size_text(size - expected)}, as for batch statistics over devices")
    elif size < expected:
        words.append(f"{size_text(expected - size)} less is summed: equal gradients once")
    return "; ".join(words) or "that is all that is exchanged"


def _bound_rows(plan):
    bounds = plan.bounds
    for name, images in bounds.items():
        yield f"bound by {_BINDS[name]}", f"{images:,.0f} images/s"
    if bounds:
        binds = min(bounds, key=bounds.get)
        in_all = bounds[binds] * len(plan.devices)
        yield "at the most", f"{bounds[binds]:,.0f} images/s, {in_all:,.0f} on all devices; {_BINDS[binds]} binds"
    if plan.largest:
        yield "largest batch of all devices", _largest(plan)


def _largest(plan):
    fits, fails, limit = plan.largest
    why = f"{fails:,} does not fit" if fails else "all that the data allow" if fits == limit else "the largest tried"
    return f"{fits:,} ({why})"


def check_table(checks: Sequence[Check]) -> Table:
    """Checks for people: a line for each, with what to do."""
    table = titled_table("this machine")
    for name in ("", "", "found", "advice"):
        table.add_column(name, overflow="fold")
    for check in checks:
        table.add_row(check.name, "!" if check.advice else "ok", check.found, check.advice or "")
    return table
