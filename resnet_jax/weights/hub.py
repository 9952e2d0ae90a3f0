"""Weights from the Hugging Face Hub."""

import json
import pathlib

from resnet_jax.errors import UserError

HUB = "hf:"  # before the id of a repository
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


def download(source: str, name: str) -> tuple[pathlib.Path, dict]:
    """The weights of a repository that timm wrote, in the Hub's cache, and how its images are prepared.

    Args:
      source: "hf:OWNER/NAME", maybe with "@REVISION".
      name: model that its architecture must be, a key of `MODELS`.

    Returns:
      (file, keyword arguments of `Preprocessing` that its `config.json` gives).

    Raises:
      UserError: no such repository, no network, or another architecture.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{source}: expected the package huggingface_hub; pip install huggingface_hub") from None
    huggingface_hub.logging.set_verbosity_error()  # of no network it warns ten times
    repository, _, revision = source.removeprefix(HUB).partition("@")
    try:
        files = [
            pathlib.Path(huggingface_hub.hf_hub_download(repository, file, revision=revision or None))
            for file in (_CONFIG, _WEIGHTS)
        ]
    except Exception as error:  # of the Hub, of HTTP, of the network
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{source}: expected a repository with {_CONFIG} and {_WEIGHTS}, found {type(error).__name__}: {reason}; "
            "check its id and the network"
        ) from None
    try:
        stored = json.loads(files[0].read_text())
        settings = stored.get("pretrained_cfg", stored)
        architecture = stored["architecture"]
        preprocessing = {
            "size": settings["input_size"][-1],
            "crop_fraction": settings["crop_pct"],
            "interpolation": settings["interpolation"],
            "mean": list(settings["mean"]),
            "std": list(settings["std"]),
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{source}: expected a {_CONFIG} as timm writes it, found none of it: {error}") from None
    if architecture != name:
        raise UserError(f"{source}: expected {name}, found {architecture}; name that model, if it is in list_models()")
    return files[1], preprocessing
