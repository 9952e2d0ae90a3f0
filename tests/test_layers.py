"""The picture of the house: imports point one way."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "resnet_jax").rglob("*.py")
}
# Each may import what stands before it in its line of descent, never what stands after.
LEVELS = [
    {"errors"},
    # the leaves: no other leaf, but for the vocabulary they share
    {"metrics", "optim", "parallel", "checkpoint", "logs", "environment", "step", "window", "workdir"}
    | {"command", "measure", "plots", "published", "predictions"},
    {"validate"},
    {"build", "study"},
    {"runs", "screens", "probes", "estimate", "findings"},
    {"session", "predict"},
    {"loop", "evaluate", "summary", "report"},
    {"together"},
    {"ablate"},
]
SHARED = {  # what a leaf may know of another, and why
    "step": {"metrics"},  # a step returns sums
    "window": {"metrics"},
    "checkpoint": {"step"},  # what is saved is a TrainState
    "workdir": {"environment"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)  # from resnet_jax import loop


def test_imports_point_one_way():
    level = {f"resnet_jax.{name}": index for index, names in enumerate(LEVELS) for name in names}
    for module, path in FILES.items():
        if module == "resnet_jax" or module.startswith(("resnet_jax.models", "resnet_jax.data")):
            continue  # the public names; and the test below
        assert module in level, f"give {module} a place in LEVELS"
        leaf = module.removeprefix("resnet_jax.")
        for imported, _ in imports(path):
            if imported not in level or imported == "resnet_jax.errors":
                continue
            shared = imported.removeprefix("resnet_jax.") in SHARED.get(leaf, set())
            assert level[imported] < level[module] or shared, f"{module} imports {imported}"


def test_models_and_data_know_nothing_of_the_rest():
    for module, path in FILES.items():
        if module.startswith(("resnet_jax.models", "resnet_jax.data")):
            allowed = ("resnet_jax.errors", "resnet_jax.models", "resnet_jax.data")
            for imported, _ in imports(path):
                assert not imported.startswith("resnet_jax") or imported.startswith(allowed), f"{module}: {imported}"


def test_config_keys_are_read_in_few_files():
    key = re.compile(r"config\.(model|norm|data|augment|train|optim|parallel|eval|measure|checkpoint|log)\.")
    readers = {module for module, path in FILES.items() if key.search(path.read_text())}
    # `session` and `runs` ask which checkpoints are kept, `session` and `probes` what is measured, `estimate` how long
    # a run is, `loop` whether there are other processes, `evaluate` asks for one device; `command` sets the length;
    # `runs` and `predict` how data are read; `screens` and those of `data` print keys.
    names = "build validate session runs predict probes estimate loop evaluate command screens data.prepare"
    names += " data.archives data.stream"
    assert readers <= {f"resnet_jax.{name}" for name in names.split()}


@pytest.mark.parametrize("package", ["tensorflow", "torch", "keras"])
def test_other_frameworks_are_imported_nowhere_but_where_data_are_prepared(package):
    for module, path in FILES.items():
        found = [name for name, _ in imports(path) if name.split(".")[0] == package]
        assert not found or module == "resnet_jax.data.prepare", f"{module} imports {package}"


def test_only_parallel_names_the_device_axis_and_only_plots_imports_matplotlib():
    for module, path in FILES.items():
        text = path.read_text()
        if module != "resnet_jax.training.parallel":
            assert not any(word in text for word in ("pmean", "psum", "axis_index(", "shard_map(")), module
        if module != "resnet_jax.studies.plots":
            assert not any(name.startswith("matplotlib") for name, _ in imports(path)), module


@pytest.mark.slow
def test_the_public_names_are_there_and_a_model_needs_neither_orbax_nor_matplotlib():
    code = (
        "import sys, resnet_jax; resnet_jax.create_model('resnet20', num_classes=10);"
        "print({'orbax', 'matplotlib', 'tensorboardX'} & sys.modules.keys());"
        "print([callable(getattr(resnet_jax, name)) for name in ('create_model', 'load_checkpoint', 'load_data')])"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == ["set()", "[True, True, True]"]
