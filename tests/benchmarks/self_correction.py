"""What self-correction's noise costs: the choice of top_k and temperature.

    python tests/benchmarks/self_correction.py CHECKPOINT FOLDER [level] [patterns to leave out …]

CHECKPOINT "" is the tokenizer that comes with the project. For each setting, over all photographs
of FOLDER whole at ``level`` (256): the share of codes that the noise changed, and the mean PSNR of
the pictures drawn from the input codes, which a model reads, and from the target codes. Noise is
cheap if the inputs lose little: later scales repair it. Then, by scale, the defaults' share of
tokens drawn and changed.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from infra.pixels import Pixels
from infra.schedules import NUM_SCALES, Schedule
from tokenize_offline import checkpoint, codes
from tokenize_offline.correction import Correction, Encoded, Int32, encode
from tokenize_offline.evaluation import mse, psnr_db
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import open_pictures, to_unit, whole

SETTINGS = (
    Correction(rate=0.0),
    Correction(top_k=2),
    Correction(top_k=4),
    Correction(temperature=0.05),
    Correction(),
    Correction(temperature=0.2),
    Correction(top_k=16),
    Correction(top_k=32, temperature=0.2),
    Correction(rate=1.0),
)

SHORT_SIDE = 1_600  # larger photographs are reduced to it first, as in training

Picture = tuple[str, Schedule, Pixels, Tensor]  # name, schedule, pixels, features


@torch.inference_mode()
def main(path: str, folder: str, level: int | str = 256, *exclude: str) -> None:
    torch.set_num_threads(1)
    level = int(level)
    tokenizer = checkpoint.load(path)
    photographs = list(open_pictures([folder], short_side=SHORT_SIDE, exclude=exclude).decodable())
    pictures: list[Picture] = []
    for photo in photographs:
        schedule, rgb = whole(photo, level)
        pictures.append((photo.name, schedule, rgb, tokenizer.features(to_unit([rgb]))))
    print(f"{len(pictures)} photographs at level {level}")
    print("rate  top_k  temperature   changed    inputs    targets")
    for correction in SETTINGS:
        encoded = [noisy(tokenizer, picture, correction, level) for picture in pictures]
        changed = np.mean([(one.input_codes != one.target_codes).mean() for one in encoded])
        of_inputs = mean_db(tokenizer, pictures, [one.input_codes for one in encoded], level)
        of_targets = mean_db(tokenizer, pictures, [one.target_codes for one in encoded], level)
        mark = "  default" if correction == Correction() else ""
        print(
            f"{correction.rate:4}  {correction.top_k:5}  {correction.temperature:11}"
            f"   {changed:7.1%}  {of_inputs:5.2f} dB  {of_targets:5.2f} dB{mark}"
        )
        if correction == Correction():
            default = encoded
    by_scale = [
        one.rates(schedule.grids[: NUM_SCALES[level]])
        for one, (_, schedule, _, _) in zip(default, pictures, strict=True)
    ]
    print("scale    drawn  changed")
    for scale, (drawn, flipped) in enumerate(np.mean(by_scale, axis=0).T, start=1):
        print(f"{scale:5}  {drawn:7.1%}  {flipped:7.1%}")


def noisy(tokenizer: Tokenizer, picture: Picture, correction: Correction, level: int) -> Encoded:
    name, schedule, _, features = picture
    grids = schedule.grids[: NUM_SCALES[level]]
    return encode(tokenizer.quantizer, features, grids, [name], correction)


def mean_db(
    tokenizer: Tokenizer, pictures: Sequence[Picture], streams: Sequence[Int32], level: int
) -> float:
    """Mean PSNR of the pictures drawn from one of the two streams."""
    of_each = []
    for (_, schedule, rgb, _), stream in zip(pictures, streams, strict=True):
        drawn = codes.decode(tokenizer, stream, schedule, NUM_SCALES[level])
        of_each.append(psnr_db(mse(rgb, drawn[0])))
    return float(np.mean(of_each))


if __name__ == "__main__":
    main(*sys.argv[1:])
