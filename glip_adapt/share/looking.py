"""Look at many pictures, each for the classes of a detector or for the phrases of its own sentence.

What is found is written picture by picture, so that a killed call goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glip_adapt.core.captions import Caption
from glip_adapt.core.files import written_whole
from glip_adapt.core.sentences import Tagger, sentence_caption
from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.tagger import nltk_tags
from glip_adapt.engine.adapted import AdaptedModel, AdaptedTrunk
from glip_adapt.engine.detector import Detector
from glip_adapt.engine.pseudo_labels import Result, found_in, unlabelled
from glip_adapt.share.gallery import count

OnPicture = Callable[[int, int], None]
"""Called with the number of pictures that are done, and of all."""


@dataclass(frozen=True)
class Picture:
    """An image to label, and the sentence whose phrases are looked for; None for the classes of the detector."""

    path: Path
    sentence: Caption | None = None


def pictures_of(
    asked: Sequence[str | Path | tuple[str | Path, str]], tagger: Tagger = nltk_tags
) -> tuple[list[Picture], list[str]]:
    """Return what to look at, and the reason for each sentence that is left out as it has no phrase.

    Args:
        asked: image files, or pairs of a file and a sentence, whose phrases are in brackets; without brackets they are
            its noun phrases.
        tagger: finds noun phrases.

    Raises:
        ValueError: if there is nothing to look at, some images have sentences and others have not, or no sentence has a
            phrase.
        RuntimeError, FileNotFoundError: if nltk or its data are needed and missing.
    """
    if not asked:
        raise ValueError("There is no image to label. Give a folder that holds some.")
    if len({isinstance(one, tuple) for one in asked}) > 1:
        raise ValueError("Some images have sentences and others have not. Label them in two calls.")
    pictures, reasons = list[Picture](), list[str]()
    for one in asked:
        path, text = one if isinstance(one, tuple) else (one, None)
        try:
            pictures.append(Picture(Path(path), None if text is None else sentence_caption(text, tagger=tagger)))
        except ValueError as error:
            reasons.append(f"{Path(path).name}: {error}")
    if not pictures:
        raise ValueError(f"None of {count(len(asked), 'sentence')} can be read, such as {reasons[0]}")
    return list(dict.fromkeys(pictures)), reasons


class Finder:
    """Looks at pictures, and keeps what it finds in a file, line by line."""

    def __init__(self, model: Detector | AdaptedTrunk, view: ViewConfig) -> None:
        self.model, self.view = model, view

    def find(self, pictures: Sequence[Picture], kept: Path, on_picture: OnPicture | None) -> dict[Picture, Any]:
        """Return what was found in each picture, or the reason why it cannot be read.

        Raises:
            FileExistsError: if the file is that of another detector or view.
        """
        facts = self._facts()
        done = _read_kept(kept, facts)
        found: dict[Picture, Any] = {}
        with kept.open("a", encoding="utf-8") as file:
            for position, picture in enumerate(pictures, start=1):
                key = f"{picture.path}\n{picture.sentence.text if picture.sentence else ''}"
                if not isinstance(done.get(key), list):  # what could not be read may have been replaced since
                    done[key] = self._look(picture)
                    file.write(json.dumps([key, done[key]]) + "\n")
                    file.flush()
                found[picture] = done[key]
                if on_picture:
                    on_picture(position, len(pictures))
        return found

    def _look(self, picture: Picture) -> list[Result] | str:
        try:
            record, detector = unlabelled(picture.path), detector_of(self.model, picture)
            found = found_in(detector, record, tuple(range(len(detector.class_names))), view=self.view)
        except (FileNotFoundError, ValueError) as error:
            return f"{picture.path.name} is left out: {error}"
        return [{key: entry[key] for key in ("category_id", "bbox", "score")} for entry in found]

    def _facts(self) -> dict[str, Any]:
        """Return what makes this another detector, or another look."""
        model, digest = self.model, hashlib.sha256()
        if isinstance(model, AdaptedModel):
            for name, tensor in model.owned_tensors().items():
                digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        names = list(model.class_names) if isinstance(model, Detector) else []
        weights = model.frozen_checksum if isinstance(model, Detector) else model.trunk.checksum
        return {"weights": weights, "owned": digest.hexdigest(), "names": names, "view": asdict(self.view)}


def detector_of(model: Detector | AdaptedTrunk, picture: Picture) -> Detector:
    """Return the detector for the phrases of a picture, or for the classes of the model.

    Raises:
        ValueError: if the model reads no sentences, or has no classes; or as ``AdaptedTrunk.for_sentence``.
    """
    if picture.sentence is None:
        if isinstance(model, Detector):
            return model
        raise ValueError("Pictures without sentences need a detector for classes: attach(trunk, method, classes=…).")
    if isinstance(model, AdaptedModel | AdaptedTrunk):
        return model.for_sentence(picture.sentence)
    raise ValueError("A baked model has no text encoder to read sentences with. Use the adapter that it was made from.")


def _read_kept(file: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an earlier call found, and write the file anew without the line in which that call was killed."""
    lines: list[Any] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    if lines and lines[0] != facts:
        raise FileExistsError(
            f"{file} is of a call with another detector or other classes. Give the options of that call to go on with "
            "it, or remove the file."
        )
    with written_whole(file) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in [facts, *lines[1:]]), encoding="utf-8")
    return dict(lines[1:])
