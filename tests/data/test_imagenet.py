"""The readable names of ImageNet's classes, against other sources of them."""

import ast
import importlib.util
import pathlib

import pytest

from resnet_jax.data.imagenet import imagenet_class_names, readable_class_names


def file_of(package, *parts):
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    path = spec and pathlib.Path(spec.origin).parent.joinpath(*parts)
    if not path or not path.exists():
        pytest.skip(f"{package} with {'/'.join(parts)} is not installed")
    return path


def wordnet_ids():
    return file_of("tensorflow_datasets", "datasets", "imagenet2012", "labels.txt").read_text().split()


def test_each_label_has_a_name_of_its_own():
    names = imagenet_class_names()
    assert len(names) == len(set(names)) == 1000
    known = {0: "tench", 207: "golden retriever", 281: "tabby", 517: "crane", 134: "crane bird", 999: "toilet tissue"}
    assert {label: names[label] for label in known} == known


def test_the_wordnet_ids_of_tfds_get_the_names_of_their_labels():
    assert readable_class_names(wordnet_ids()) == imagenet_class_names()
    assert readable_class_names(["n02123045", "my cat", "n99999999"]) == ("tabby", "my cat", "n99999999")


def test_the_names_are_torchvisions():
    tree = ast.parse(file_of("torchvision", "models", "_meta.py").read_text())
    (names,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id.startswith("_IMAGENET")
    ]
    assert imagenet_class_names() == tuple(ast.literal_eval(names))


def test_the_names_are_words_of_their_wordnet_synsets():
    lines = file_of("timm", "data", "_info", "imagenet_synset_to_lemma.txt").read_text().splitlines()
    words = dict(line.split("\t") for line in lines)
    renamed = {"crane bird": "crane", "maillot tank suit": "maillot"}  # a word of two synsets
    for wordnet_id, name in zip(wordnet_ids(), imagenet_class_names(), strict=True):
        assert renamed.get(name, name).lower() in words[wordnet_id].lower().split(", "), wordnet_id
