"""Transfer: a new head on the frozen layers of a net of ten digits, to tell even from odd ones, from 180 examples.

Before: python train.py --workdir=runs/digits
"""

import pathlib
import sys

from PIL import Image

import resnet_jax
from resnet_jax.data.splits import load_splits

run = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits")
images = run.with_name("parity_images")  # a folder for each class, as your own images would lie
splits = load_splits(**resnet_jax.load_card(run).data)
for name, split in {"train": splits["validation"], "test": splits["test"]}.items():  # the run learnt from neither
    for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        path = images / name / ("odd" if label % 2 else "even") / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)

config = resnet_jax.get_config("finetune")  # a new head, the other layers frozen
config.init_from, config.model.name = str(run), "resnet20"
config.data.data_dir, config.data.image_size, config.data.validation_size = str(images), 8, 0
config.augment.view, config.augment.flip, config.augment.jitter = "center", False, (0.0, 0.0, 0.0, 0.0)
config.eval.crop_fraction = 1.0
result = resnet_jax.train(config, run.with_name("parity"))
print(f"even or odd: {result['last']['test']['accuracy']:.2%} of the test images")
