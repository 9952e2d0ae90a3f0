"""Steps of formats 0 to 2, which had digests of their arrays in `meta/metadata` and no manifest.

Format 0 had no card, 1 kept its metrics outside the digests. A fixture of each lies in tests/golden.
"""

import hashlib
import json
import pathlib

from resnet_jax.checkpoint.errors import CorruptCheckpoint, check_format, garbled, mismatch, not_readable
from resnet_jax.errors import UserError

FORMAT = 2
META = "meta"
_FILE = pathlib.Path(META) / "metadata"  # where Orbax wrote JSON


def is_earlier_step(path: pathlib.Path) -> bool:
    """True for the folder of a step of these formats."""
    return (path / META).is_dir()


def read_meta(path: pathlib.Path) -> dict:
    """The fields of `manifest.Manifest` that a step of these formats has.

    Raises:
      CorruptCheckpoint: it is not there, or does not match its digests.
      UserError: it may not be read, or was saved by a newer version.
    """
    try:
        stored = json.loads((path / _FILE).read_text())
        version = check_format(stored.get("format", 0), FORMAT, f"checkpoint {path}")
        digests, notes, card = dict(stored["digests"]), stored["notes"], stored.get("card")
        if version >= 2:
            found = {META: stored.pop("digest")}
            expected = {META: _text_digest(stored)}
            step, metrics = stored["step"], stored["metrics"]
        else:
            found = digests
            expected = {"notes": _text_digest(notes), **({"card": _text_digest(card)} if version else {})}
            source = (card or {}).get("source", {})
            step = source.get("step")
            metrics = source.get("metrics") if version else _metrics_of_format_0(path)
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptCheckpoint(f"checkpoint {path} cannot be read: it has no {_FILE}") from None
    except OSError as error:
        raise not_readable(error) from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):  # ValueError: not text, or not JSON
        raise garbled(path, _FILE) from None
    for name, value in expected.items():
        if found.get(name) != value:
            raise mismatch(path, name)
    return {"step": step, "metrics": metrics, "notes": notes, "card": card, "digests": digests}


def _text_digest(value: dict | None) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _metrics_of_format_0(path) -> dict | None:
    try:
        return dict(json.loads((path / "metrics" / "metrics").read_text()))
    except (OSError, ValueError, TypeError):  # there were none, or they are garbled: then it is not the best
        return None
