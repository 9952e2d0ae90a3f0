"""Pictures of where an image speaks for its class: CAM (Zhou et al. 2016) and Grad-CAM (Selvaraju et al. 2017).

Before: python train.py --workdir=runs/digits
"""

import pathlib
import sys

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import resnet_jax
from resnet_jax.evaluation.cam import class_activation_map, grad_cam
from resnet_jax.evaluation.overlays import overlay

run = sys.argv[1] if len(sys.argv) > 1 else "runs/digits"
model, variables = resnet_jax.load_checkpoint(run)
preprocess = resnet_jax.preprocessing(model)
digits = list(np.uint8(load_digits().images[:8] * (255 / 16)))  # or paths of your own images
images = preprocess(digits)
logits = model.apply(variables, images, train=False)
labels = logits.argmax(axis=1)

rows = []
for method in (class_activation_map, grad_cam):
    maps = method(model, variables, images, labels)  # (n, h, w)
    rows.append(np.hstack([overlay(digit[..., None], heat) for digit, heat in zip(digits, maps, strict=True)]))
picture = Image.fromarray(np.vstack(rows))
picture.save(pathlib.Path(run, "class_activation.png"))
print(*(preprocess.class_names[label] for label in labels), "in", pathlib.Path(run, "class_activation.png"))
