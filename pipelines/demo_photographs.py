"""The photographs of the demo: where they lie, what they show, and which crops are cut of them.

They come with scikit-image and scikit-learn. `demo_data/photographs.yaml` holds a caption, the
attribution and the licence of each, and where nameable things are in it, so that a crop's caption
can say truly what the crop shows.
"""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from infra.config import ConfigError, build

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels of the original."""

PHOTOGRAPHS = Path(__file__).parent / "demo_data/photographs.yaml"
PACKAGES = {
    "scikit-image": ("skimage", "data"),
    "scikit-learn": ("sklearn", "datasets/images"),
}
"""Distribution: its module, and the folder of pictures in it."""


@dataclass(frozen=True)
class Photograph:
    """One entry of photographs.yaml, which says what the fields mean."""

    file: str
    package: str
    caption: str
    attribution: str
    licence: str
    subject: str = ""
    crops: tuple[tuple[int, int], ...] = ()
    things: dict[str, tuple[Box, ...]] = field(default_factory=dict)
    grounds: dict[str, tuple[Box, ...]] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        return self.file.rpartition(".")[0]

    def read(self) -> bytes:
        """The file's bytes. Raises ConfigError where the package is missing or lacks it."""
        module, inside = PACKAGES[self.package]
        spec = importlib.util.find_spec(module)  # finds the folder without importing the package
        path = Path(spec.origin).parent / inside / self.file if spec and spec.origin else None
        if path is None or not path.is_file():
            raise ConfigError(
                f"the demo's picture {self.file} is not in the installed {self.package}: "
                "pip install 'nextscale[demo]'"
            )
        return path.read_bytes()


def read_photographs() -> list[Photograph]:
    """The entries of photographs.yaml."""
    entries = yaml.safe_load(PHOTOGRAPHS.read_text(encoding="utf-8"))
    return [build(Photograph, entry, entry["file"]) for entry in entries]


def crop_boxes(size: tuple[int, int], crop: tuple[int, int]) -> list[Box]:
    """Boxes of width and height ``crop``, spread evenly over a picture, overlapping by about half.

    Row by row; in the middle of a side that has no room for two.
    """

    def starts(length: int, part: int) -> list[int]:
        steps = round((length - part) / (part / 2))
        if steps == 0:
            return [(length - part) // 2]
        return [round(i * (length - part) / steps) for i in range(steps + 1)]

    return [
        (left, top, left + crop[0], top + crop[1])
        for top in starts(size[1], crop[1])
        for left in starts(size[0], crop[0])
    ]


def describe(photograph: Photograph, box: Box) -> str:
    """A true caption of the crop: what of the picture's things and grounds lies in ``box``.

    A thing is named where three quarters of it are inside, as a part where a third is or where it
    fills an eighth of the crop; a ground where it fills a fifth.
    """
    area = _area(box)
    named = []
    for thing, boxes in photograph.things.items():
        shares = [_overlap(box, where) / _area(where) for where in boxes]
        fill = max(_overlap(box, where) for where in boxes) / area
        if max(shares) >= 3 / 4:
            named.append(thing)
        elif max(shares) >= 1 / 3 or fill >= 1 / 8:
            named.append(f"part of {thing}")
    for ground, boxes in photograph.grounds.items():
        if sum(_overlap(box, where) for where in boxes) / area >= 1 / 5:
            named.append(ground)
    assert named, f"{photograph.file}: nothing is known to lie in {box}"
    *first, last = named
    listed = f"{', '.join(first)} and {last}" if first else last
    return f"Detail of {photograph.subject}: {listed}."


def _overlap(a: Box, b: Box) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _area(box: Box) -> int:
    return _overlap(box, box)
