"""The notebook examples/scripts.ipynb, made of the scripts beside it: python -m tests.notebook"""

import ast
import json
import pathlib

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
NOTEBOOK = EXAMPLES / "scripts.ipynb"
# In the order of docs/scripts.md.
CELLS = "linear_probe nearest_neighbours transfer class_activation average_weights backbone".split()
_SHOWN = {"class_activation": "\npicture"}  # at the end of the cell
_RUN = '"../runs/digits"'
_FOR_ARGUMENTS = {
    'sys.argv[1] if len(sys.argv) > 1 else "runs/digits"': _RUN,
    '"trained" not in sys.argv[2:]': "True",
    "import sys\n": "",
}
_INTRODUCTION = """\
# A trained net in research scripts

The scripts of this folder, a cell each (`python -m tests.notebook` puts them here). Start Jupyter where this package
and the packages of `requirements-dev.txt` are installed. The first cell trains the default experiment, which takes a
minute, unless it was trained before."""
_TRAIN = f"""\
import pathlib

import resnet_jax

run = {_RUN}
if not pathlib.Path(run, "result.json").exists():
    resnet_jax.train(resnet_jax.get_config(), run)"""


def make_notebook() -> str:
    """The notebook's JSON: no outputs, and the code of each example with a run for its argument."""
    cells = [_cell("introduction", "markdown", _INTRODUCTION), _cell("train", "code", _TRAIN)]
    for name in CELLS:
        text = (EXAMPLES / f"{name}.py").read_text()
        module = ast.parse(text)
        title = ast.get_docstring(module).splitlines()[0]
        code = "".join(text.splitlines(keepends=True)[module.body[0].end_lineno :]).strip()
        for argument, value in _FOR_ARGUMENTS.items():
            code = code.replace(argument, value)
        cells.append(_cell(f"{name}-title", "markdown", f"## {name}.py\n\n{title}"))
        cells.append(_cell(name, "code", code.strip() + _SHOWN.get(name, "")))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _cell(name: str, kind: str, source: str) -> dict:
    cell = {"cell_type": kind, "id": name, "metadata": {}, "source": source.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


if __name__ == "__main__":
    NOTEBOOK.write_text(make_notebook())
