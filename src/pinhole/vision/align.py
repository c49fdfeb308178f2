"""The learned space: linear heads over frozen vectors, and the application of them in numpy.

An item head (picture, plus title where there is one) and a query head (text) meet in ``dim`` numbers.
What they know comes from ``heads``; here they are applied, saved and named. A space's *identity* is a
hash of its encoders and its weights; whoever keeps vectors keeps the identity beside them and calls
:meth:`Space.check`. Needs no torch,
except to train.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pinhole.errors import Corrupt, MissingArtefact, SpaceMismatch
from pinhole.vision.features import EncoderName, Features, taken
from pinhole.workspace import digest, read_json, write_atomic, write_json

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue
    from pinhole.config import Config
    from pinhole.vision.signals import Signals

LAYOUT = 1
Watch = Callable[["Space"], dict[str, float]]
"""Figures of a space that is being trained, by name."""
MATRICES = ("image.weight", "image.bias", "text.weight", "text.bias", "query.weight", "query.bias", "picture.mean", "picture.deviation")


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


class Space:
    """Two heads and the standardisation of pictures. Arrays in, arrays out, float32 throughout."""

    def __init__(self, weights: dict[str, np.ndarray], image_encoder: EncoderName, text_encoder: EncoderName, nested: tuple[int, ...]) -> None:
        self.weights = {name: np.ascontiguousarray(weights[name], dtype=np.float32) for name in MATRICES}
        self.image_encoder, self.text_encoder, self.nested = image_encoder, text_encoder, nested

    @cached_property
    def identity(self) -> str:
        """16 hex digits of encoders and weights: vectors may be compared if and only if these are equal."""
        summed = hashlib.sha256(b"".join(self.weights[name].tobytes() for name in MATRICES)).hexdigest()
        return digest(asdict(self.image_encoder), asdict(self.text_encoder), summed)

    @property
    def dim(self) -> int:
        return int(self.weights["query.weight"].shape[0])

    @property
    def content_dim(self) -> int:
        return self.image_encoder.dim + self.dim

    def picture(self, image: np.ndarray) -> np.ndarray:
        """Raw picture vectors (n, image dim) to the frozen block: standardised by the training items, of length 1."""
        centred = (np.asarray(image, dtype=np.float32) - self.weights["picture.mean"]) / self.weights["picture.deviation"]
        return unit(centred)

    def item_vectors(self, image: np.ndarray, has_image: np.ndarray, text: np.ndarray, has_text: np.ndarray) -> np.ndarray:
        """Items (n, image dim), (n,), (n, text dim), (n,) to learned vectors (n, dim) of length 1; zeros where an item has neither."""
        w = self.weights
        seen = self.picture(image) @ w["image.weight"].T + w["image.bias"]  # (n, dim)
        read = np.asarray(text, dtype=np.float32) @ w["text.weight"].T + w["text.bias"]
        return unit(seen * np.asarray(has_image)[:, None] + read * np.asarray(has_text)[:, None])

    def query_vectors(self, text: np.ndarray) -> np.ndarray:
        """Text vectors (n, text dim) to learned vectors (n, dim) of length 1."""
        return unit(np.asarray(text, dtype=np.float32) @ self.weights["query.weight"].T + self.weights["query.bias"])

    def seen_vectors(self, image: np.ndarray) -> np.ndarray:
        """Learned vectors (n, dim) from pictures alone: the only ones that may stand behind a soft token."""
        n = len(image)
        return self.item_vectors(image, np.ones(n, dtype=bool), np.zeros((n, self.text_encoder.dim), np.float32), np.zeros(n, dtype=bool))

    def content(self, image: np.ndarray, learned: np.ndarray) -> np.ndarray:
        """[frozen block ‖ learned block] (n, content_dim): what the graft's projector and the linear probe read.

        Both blocks have length √width, so that a number of either has about unit variance. ``learned`` must
        come from :meth:`seen_vectors`, or a title would leak into the soft token.
        """
        frozen = self.picture(image) * np.float32(np.sqrt(self.image_encoder.dim))
        return np.concatenate([frozen, np.asarray(learned, dtype=np.float32) * np.float32(np.sqrt(self.dim))], axis=1)

    # -- keeping --------------------------------------------------------------------------------

    def check(self, identity: str, *, where: str = "") -> None:
        """Raises :class:`SpaceMismatch`, naming both, unless ``identity`` is this space's."""
        if identity != self.identity:
            raise SpaceMismatch(f"vectors of space {identity} met space {self.identity}", where=where, fix="run `pinhole build`")

    def check_features(self, features: Features) -> None:
        """Raises :class:`SpaceMismatch` where the features come from other encoders than this space was trained on."""
        features.check(image=self.image_encoder.identity, text=self.text_encoder.identity)

    def save(self, folder: Path) -> None:
        """``space.safetensors``, then ``space.json``: the second says that the first is whole."""
        from safetensors.numpy import save

        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "space.safetensors", save(self.weights))
        meta = {"layout": LAYOUT, "identity": self.identity, "dim": self.dim, "content_dim": self.content_dim, "nested": list(self.nested)}
        write_json(folder / "space.json", {**meta, "image_encoder": asdict(self.image_encoder), "text_encoder": asdict(self.text_encoder)})

    @classmethod
    def load(cls, folder: Path | str) -> Space:
        """Raises :class:`MissingArtefact`, or :class:`Corrupt` where the weights are not those that were saved."""
        from safetensors.numpy import load

        folder = Path(folder)
        if not (folder / "space.json").exists():
            raise MissingArtefact("no learned space", where=str(folder), fix="run `pinhole build align`")
        meta: dict[str, Any] = read_json(folder / "space.json")
        fix = "delete the folder and run `pinhole build align`"
        if meta.get("layout") != LAYOUT:
            raise Corrupt(f"a space of layout {meta.get('layout')}, not {LAYOUT}", where=str(folder), fix=fix)
        try:
            weights = load((folder / "space.safetensors").read_bytes())
            space = cls(weights, EncoderName(**meta["image_encoder"]), EncoderName(**meta["text_encoder"]), tuple(meta["nested"]))
        except Exception as error:
            raise Corrupt(f"cannot be read: {error}", where=str(folder / "space.safetensors"), fix=fix) from None
        if space.identity != meta["identity"]:
            raise Corrupt("the weights are not those that were saved", where=str(folder), fix=fix)
        return space


class Vectors(Protocol):
    """A matrix, or what computes the rows of one when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray: ...


class Pictures:
    """The frozen blocks of some items, each computed when it is asked for: the largest matrix of a catalogue is never held whole."""

    def __init__(self, space: Space, features: Features, only: np.ndarray | None = None, lasting: bool = False) -> None:
        """Of ``only`` these rows of the features, if given. With ``lasting`` what was read of the file stays in memory, for one who asks often."""
        self.space, self.features, self.only, self.lasting = space, features, only, lasting

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.features) if self.only is None else len(self.only), self.space.image_encoder.dim

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(rows, image dim) of length 1; ``rows`` may have any shape."""
        asked = rows.ravel() if self.only is None else self.only[rows.ravel()]
        raw = self.features.image[asked] if self.lasting else taken(self.features.image, asked)
        return self.space.picture(raw).reshape(*rows.shape, -1)


class Learned:
    """The learned vectors of all items, from pictures and (with ``titles``) titles, each computed when it is asked for."""

    def __init__(self, space: Space, features: Features, titles: bool = True, only: np.ndarray | None = None) -> None:
        """Of ``only`` these rows of the features, if given."""
        self.space, self.features, self.titles, self.only = space, features, titles, only

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.features) if self.only is None else len(self.only), self.space.dim

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(rows, dim) of length 1."""
        return learned_vectors(self.space, self.features, titles=self.titles, only=rows if self.only is None else self.only[rows])


class Titles:
    """Title vectors of ``only`` some rows of the features, read when they are asked for."""

    def __init__(self, features: Features, only: np.ndarray) -> None:
        self.features, self.only = features, only

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.only), self.features.text_encoder.dim

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return taken(self.features.text, self.only[rows])


# -- the stage ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Frozen text vectors of all query texts: ``queries.json`` and ``queries.npy`` beside the space."""

    texts: list[str]
    vectors: np.ndarray
    """(queries, text dim) float32, each of length 1."""

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of known texts, in their order."""
        place = {text: row for row, text in enumerate(self.texts)}
        return np.asarray(self.vectors[[place[text] for text in texts]], dtype=np.float32)

    def completed(self, texts: Sequence[str], spec: str) -> Asked:
        """With those of ``texts`` that are not among them yet, read by the text encoder ``spec``."""
        from pinhole.vision.encoders import text_encoder

        more = sorted(set(texts).difference(self.texts))
        return Asked([*self.texts, *more], np.concatenate([self.vectors, text_encoder(spec).encode(more)])) if more else self

    @classmethod
    def load(cls, folder: Path) -> Asked:
        if not (folder / "queries.json").exists():
            raise MissingArtefact("no query vectors", where=str(folder), fix="run `pinhole build align`")
        return cls(read_json(folder / "queries.json"), np.load(folder / "queries.npy", allow_pickle=False))

    @classmethod
    def make(cls, texts: Sequence[str], spec: str, dim: int, folder: Path) -> Asked:
        """Encode, or take what an interrupted run left for the same texts."""
        from pinhole.vision.encoders import text_encoder

        listed = sorted(set(texts))
        if not (folder / "queries.json").exists() or read_json(folder / "queries.json") != listed:
            vectors = text_encoder(spec).encode(listed) if listed else np.zeros((0, dim), np.float32)
            save_array(folder / "queries.npy", vectors)
            write_json(folder / "queries.json", listed)
        return cls.load(folder)


def build_align(
    catalogue: Catalogue,
    features: Features,
    config: Config,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[Signals, Signals, Asked], Watch] | None = None,
) -> dict[str, float]:
    """The stage ``align``: train on the training part; write the space, its card and how training went.

    Writes ``space.*``, ``queries.*``, ``curve.json``, ``recall.json``, ``align.png`` and ``README.md``. ``watch`` makes, of the training part, the
    held-out part and the query texts' vectors, what is measured every fifty steps; nothing is decided by it. A killed run
    resumes from its checkpoint in ``out``, which is removed at the end. Returns figures for the manifest.
    """
    from pinhole.vision.card import write_card
    from pinhole.vision.heads import fit
    from pinhole.vision.signals import read_signals

    signals, held = read_signals(catalogue, features, config.graph).part(config.catalogue)
    texts = catalogue.queries()["text"].to_pylist()
    asked = Asked.make(texts, features.text_encoder.spec, features.text_encoder.dim, out)
    vectors = asked.of([query.key for query in signals.queries])
    watched = watch(signals, held, asked) if watch else None
    fitted = fit(features, signals, vectors, config.align, folder=out, progress=progress, watch=watched)
    fitted.space.save(out)
    write_json(out / "curve.json", fitted.curve)
    write_json(out / "recall.json", fitted.recalls)
    (out / "training.safetensors").unlink(missing_ok=True)
    sizes = {"items": len(signals.items), "titles": int(features.has_text[signals.items].sum())}
    sizes |= {"boards": len(signals.boards), "queries": len(signals.queries), "users": len(signals.users)}
    write_card(out, fitted, sizes, config.align)
    ends = {f"loss.{end}": fitted.curve[place]["loss"] for end, place in (("first", 0), ("last", -1))}
    return {**sizes, "steps": len(fitted.curve), **ends}


def learned_vectors(space: Space, features: Features, *, titles: bool = True, only: np.ndarray | None = None, rows: int = 2048) -> np.ndarray:
    """(n, dim): every item's vector from picture and title, or from its picture alone, in slices of ``rows``; of ``only`` some rows if given."""
    wanted = np.arange(len(features)) if only is None else only
    out = np.empty((len(wanted), space.dim), np.float32)
    for start in range(0, len(wanted), rows):
        piece = wanted[start : start + rows]
        image, text = taken(features.image, piece), taken(features.text, piece)
        out[start : start + rows] = space.item_vectors(image, features.has_image[piece], text, features.has_text[piece] & titles)
    return out


def save_array(path: Path, array: np.ndarray) -> None:
    """An ``.npy`` file, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())
