"""The readable names of ImageNet's classes."""

import functools
import importlib.resources
from collections.abc import Sequence


def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 names of ImageNet's classes (ILSVRC 2012), in label order: "tench", ..., "toilet tissue".

    Label order is the order of the WordNet ids, sorted. The names are those of torchvision
    (`torchvision.models._meta`, BSD 3-Clause licence, (c) Soumith Chintala 2016), which are the first or best known
    words of their WordNet synsets (WordNet licence, (c) Princeton University); "crane bird" and "maillot tank suit"
    are told apart from "crane" and "maillot".
    """
    return tuple(_names_by_wordnet_id().values())


def readable_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """The names with ImageNet's WordNet ids, like "n01440764", replaced by its readable names, like "tench"."""
    return tuple(_names_by_wordnet_id().get(name, name) for name in class_names)


@functools.cache
def _names_by_wordnet_id() -> dict[str, str]:
    lines = importlib.resources.files(__package__).joinpath("imagenet_classes.txt").read_text("utf-8").splitlines()
    return dict(line.split(" ", maxsplit=1) for line in lines)
