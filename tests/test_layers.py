"""The picture of the house: imports point one way, and each file stays small."""

import ast
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "resnet_jax").rglob("*.py")
    if "configs" not in path.parts  # a link to experiments
}
# Each layer may import itself and those before it.
LAYERS = [
    {
        "errors",
        "signals",
        "bucket",
        "workdir",
        "environment",
        "commands",
        "progress",
        "xla_flags",
        "device_memory",
        "job",
    },
    {"models", "data"},
    {"checkpoint", "weights"},
    {"training"},
    {"config"},
    {"evaluation", "studies", "planning"},
    {"evaluate", "predict", "convert", "export", "summary", "ablate", "report", "doctor", "__main__"},
]
APART = [("models", "data"), ("evaluation", "studies")]  # neighbours that know nothing of each other
DOORS = LAYERS[-1]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)  # from resnet_jax import loop


def room(module):
    return module.split(".")[1] if module.startswith("resnet_jax.") else None


@functools.cache
def own_imports(module):
    """The modules of this package that a module imports by its statements."""
    return frozenset(name for name, _ in imports(FILES[module]) if name in FILES) - {"resnet_jax"}


def closure(module):
    """The modules that come with a module, `__init__.py` files left out that only hand names on."""
    found, new = set(), {module}
    while new:
        found |= new
        new = set().union(*map(own_imports, new)) - found
    return {name for name in found if FILES[name].name != "__init__.py"}


def test_each_layer_imports_only_those_before_it():
    level = {name: index for index, names in enumerate(LAYERS) for name in names}
    for module in FILES:
        if module == "resnet_jax":
            continue  # the public names
        assert room(module) in level, f"give {module} a place in LAYERS"
        for imported in own_imports(module):
            assert level[room(imported)] <= level[room(module)], f"{module} imports {imported}"
            assert (room(module), room(imported)) not in APART, f"{module} imports {imported}"
            assert (room(imported), room(module)) not in APART, f"{module} imports {imported}"
            assert room(imported) not in DOORS, f"{module} imports {imported}"


def test_no_modules_import_each_other():
    for module in FILES:
        for imported in closure(module) - {module}:
            assert module not in closure(imported), f"{module} and {imported} import each other"


def test_the_training_loop_can_be_read_in_an_afternoon():
    modules = closure("resnet_jax.training.loop")
    lines = sum(len(FILES[module].read_text().splitlines()) for module in modules)
    assert len(modules) <= 22 and lines <= 3000, (len(modules), lines, sorted(modules))


def test_the_reading_path_is_short_and_its_line_counts_are_right():
    page = (ROOT / "docs" / "reading.md").read_text()
    rows = re.findall(r"\]\(../(resnet_jax/\S+\.py)\) \| (\d+) \|", page)
    assert [name for name, lines in rows if (ROOT / name).read_text().count("\n") != int(lines)] == []
    total = sum(int(lines) for _, lines in rows)
    assert len(rows) == 8 and total <= 1200
    assert f"{total:,} lines together" in page and f"{total:,} lines together" in (ROOT / "README.md").read_text()


def test_files_and_functions_are_short():
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in map(ROOT.joinpath, tracked.split()):
        text = path.read_text()
        assert text.count("\n") <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_doors_parse_call_and_print():
    for door in DOORS:
        assert FILES[f"resnet_jax.{door}"].read_text().count("\n") <= 60, door


def test_only_the_config_layer_reads_config_keys():
    """Attributes of a config, like `config.train.steps`: of a ConfigDict, not of `jax.config`."""
    sections = {"model", "norm", "data", "augment", "train", "optim", "parallel", "eval", "diagnostics", "log"}
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in sections:
                value = node.value
                name = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", None)
                if name in ("config", "experiment"):
                    allowed = room(module) == "config" or module in READERS
                    assert allowed, f"{module}: line {node.lineno} reads config.{node.attr}"


# The model's name in a sentence, and in the choice of a published value; whether a study runs on several processes.
READERS = {"resnet_jax.studies.estimate", "resnet_jax.studies.published", "resnet_jax.ablate"}


@pytest.mark.parametrize("package", ["tensorflow", "torch", "keras"])
def test_other_frameworks_are_imported_nowhere_but_where_data_are_prepared(package):
    for module, path in FILES.items():
        found = [name for name, _ in imports(path) if name.split(".")[0] == package]
        assert not found or module == "resnet_jax.data.prepare", f"{module} imports {package}"


def test_only_parallel_names_the_device_axis_and_only_plots_import_matplotlib():
    for module, path in FILES.items():
        text = path.read_text()
        if module not in ("resnet_jax.training.parallel", "resnet_jax.models.norm"):  # norms are given the axis
            assert not any(word in text for word in ("pmean", "psum", "axis_index(", "shard_map(")), module
        if not module.endswith(".plots"):
            assert not any(name.startswith("matplotlib") for name, _ in imports(path)), module


@pytest.mark.slow
def test_the_public_names_are_there_and_a_model_needs_neither_orbax_nor_matplotlib():
    code = (
        "import sys, resnet_jax; resnet_jax.create_model('resnet20', num_classes=10);"
        "print({'orbax', 'matplotlib', 'tensorboardX'} & sys.modules.keys());"
        "print([name for name in resnet_jax.__all__ if not hasattr(resnet_jax, name)])"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == ["set()", "[]"]


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_its_commands_work_elsewhere(tmp_path):
    source = tmp_path / "source"  # a copy: what an earlier build left beside the checkout would get into the wheel
    shutil.copytree(ROOT / "resnet_jax", source / "resnet_jax", symlinks=True)
    shutil.copytree(ROOT / "configs", source / "configs")
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(wheel, check=True, capture_output=True)
    target = tmp_path / "installed"
    (built,) = tmp_path.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(built)]
    subprocess.run(install, check=True, capture_output=True)
    files = {path.relative_to(target) for path in (target / "resnet_jax").rglob("*.py")}
    assert {path.relative_to(ROOT) for path in FILES.values()} <= files
    modules = sorted(name for name in FILES if not name.endswith("prepare"))
    code = f"import importlib; [importlib.import_module(name) for name in {modules}]; import resnet_jax;"
    code += "print(resnet_jax.__file__, resnet_jax.get_config('cifar10_he2015:resnet56').model.name)"
    environment = {"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    environment["XLA_FLAGS"] = os.environ["XLA_FLAGS"]  # quick compilation
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    process = subprocess.run([sys.executable, "-c", code], **run)
    assert process.stdout.split() == [str(target / "resnet_jax" / "__init__.py"), "resnet56"], process.stderr
    for command in (["summary", "resnet20"], ["ablate", "--help"], ["evaluate", "--help"]):
        process = subprocess.run([sys.executable, "-m", f"resnet_jax.{command[0]}", *command[1:]], **run)
        assert process.returncode == 0 and process.stdout, process.stderr
