"""The text of --help: experiments, and the keys of a config with their defaults."""

import ast
import inspect
import pathlib
import re
from collections.abc import Iterator

from resnet_jax.config import default
from resnet_jax.config.stored import flatten


def describe_experiments(folder: pathlib.Path) -> Iterator[str]:
    """A line for each config file in a folder: its name and the first line of its docstring."""
    yield "experiments, --config=NAME:"
    for path in sorted(folder.rglob("*.py")):
        text = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ")
        name = str(path.relative_to(folder).with_suffix(""))
        if text and name != "ablations/__init__":
            yield f"  {name:<32} {text}"


def describe_keys() -> Iterator[str]:
    """A line for each key: its default, and the comment beside it or on the line before in default.py."""
    comments, above = {}, ""
    for line in inspect.getsource(default).splitlines():
        if match := re.match(r"    (\w+)\.(\w+) = .*?(?:  # (.*))?$", line):
            section = {"config": "", "evaluation": "eval."}.get(match[1], f"{match[1]}.")
            comments[section + match[2]] = above or match[3] or ""
        above = match[1] if (match := re.match(r"    # (.*)", line)) else ""
    yield "keys, --config.KEY=VALUE:"
    for key, value in flatten(default.get_config()).items():
        setting = f"{key}={value}"
        yield f"  {setting:<44} {comments.get(key, '')}".rstrip()
