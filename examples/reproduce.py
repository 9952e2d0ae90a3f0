"""Train the default experiment, load its best weights and score them: exactly the accuracy that the run reported.

Usage: python -m examples.reproduce [RUN] [EXPERIMENT]. A run that is complete is not trained again.
"""

import json
import pathlib
import sys

import resnet_jax
from resnet_jax.data.splits import load_splits

run = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits")
experiment = sys.argv[2] if len(sys.argv) > 2 else "default"
resnet_jax.train(resnet_jax.get_config(experiment), run)
reported = json.loads((run / "result.json").read_text())["best"]["test"]["accuracy"]

model, variables = resnet_jax.load_checkpoint(run, step="best")
preprocess = resnet_jax.preprocessing(model)
stored = load_splits(**resnet_jax.load_card(run).data)["test"]  # images as they are stored: uint8
logits = model.apply(variables, preprocess(stored.images), train=False)
accuracy = int((logits.argmax(axis=-1) == stored.labels).sum()) / len(stored.labels)
print(f"reported {reported}, found {accuracy}")
assert accuracy == reported

images, labels = resnet_jax.load_data(run, "test")  # the same in one line
assert (images == preprocess(stored.images)).all() and (labels == stored.labels).all()
