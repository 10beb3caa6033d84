"""A picture at a level: scaled and cut to the schedule nearest to its ratio, and encoded.

A picture is scaled to cover and centre-cropped to the schedule whose last grid is nearest in ratio:
16 pixels per cell of the level's last grid. Nothing is enlarged.
"""

from dataclasses import dataclass
from typing import Any

from infra.pixels import DecodeError, Pixels, decode, encode_jpeg, resize_crop
from infra.schedules import NUM_SCALES, nearest

Size = tuple[int, int]
"""Height and width, in pixels."""


@dataclass(frozen=True)
class LevelPicture:
    """Cut pictures to ``level``, losing a share of ``max_cropped`` of their pixels at most.

    Raises ValueError for an unknown level, a quality outside 1 to 100, and a share outside 0 to 1.
    """

    level: int
    jpeg_quality: int
    max_cropped: float

    def __post_init__(self) -> None:
        if self.level not in NUM_SCALES:
            raise ValueError(f"level is {self.level}: choose {', '.join(map(str, NUM_SCALES))}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality is {self.jpeg_quality}, expected 1 to 100")
        if not 0 <= self.max_cropped <= 1:
            raise ValueError(f"max_cropped is {self.max_cropped}, expected a share in [0, 1]")

    def target(self, height: int, width: int) -> Size:
        """The size at the level of a picture of this size.

        Raises DecodeError ``too_small_for_level`` for one that would have to be enlarged.
        """
        target = nearest(height, width).image_size(self.level)
        if height < target[0] or width < target[1]:
            raise DecodeError(
                "too_small_for_level",
                f"{width}x{height} is below {target[1]}x{target[0]} of level {self.level}",
            )
        return target

    def cut(self, rgb: Pixels, target: Size, full: Size) -> dict[str, Any]:
        """``image`` (a JPEG of ``target``'s size), ``width``, ``height`` and ``cropped``.

        ``rgb`` [h, w, 3] is the picture, perhaps reduced from its ``full`` size. Raises DecodeError
        ``too_elongated`` where more than ``max_cropped`` would go.
        """
        crop, cropped = resize_crop(rgb, *target)
        if cropped > self.max_cropped:
            raise DecodeError(
                "too_elongated",
                f"{full[1]}x{full[0]}: {cropped:.0%} would be cut away, at most "
                f"{self.max_cropped:.0%} may be",
            )
        height, width = target
        data = encode_jpeg(crop, self.jpeg_quality)
        return {"image": data, "width": width, "height": height, "cropped": cropped}

    def of_file(self, data: bytes) -> dict[str, Any]:
        """`cut` of an encoded file; raises DecodeError as `decode`, `target` and `cut` do."""
        # Half as large again as the target's short side keeps the reduction to the exact size a
        # true area mean while JPEGs still decode at reduced scale.
        decoded = decode(data, self.level * 3 // 2)
        full = decoded.height, decoded.width
        target = self.target(*full)
        rgb = decoded.rgb
        if rgb.shape[0] < target[0] or rgb.shape[1] < target[1]:
            rgb = decode(data).rgb  # extreme ratios: the reduced picture was too small
        return self.cut(rgb, target, full)
