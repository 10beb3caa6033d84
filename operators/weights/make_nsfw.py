"""Make the weights of operators/nsfw.py from nsfwjs' package, which has them as JavaScript.

    npm pack nsfwjs@4.3.0
    python operators/weights/make_nsfw.py nsfwjs-4.3.0.tgz nsfw_mobilenetv2.safetensors

The package holds the Keras model quantised to bytes, each tensor with a step and a least value of
its own; it is widened and stored in fp16. Batch normalisations stay as they are.
"""

import argparse
import base64
import re
import tarfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

_TENSOR = re.compile(
    r'name:"([^"]+)",shape:\[([\d,]+)\],dtype:"float32",'
    r'quantization:{min:([-\d.e]+),scale:([-\d.e]+),dtype:"uint8"}'
)
_ENDS = {"Conv1": "conv1", "bn_Conv1": "bn1", "Conv_1": "conv_last", "Conv_1_bn": "bn_last"}
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
_NORM["moving_variance"] = "running_var"


def published(archive: Path) -> dict[str, Tensor]:
    """The tensors of the package's MobileNetV2 under their Keras names, in fp32."""
    with tarfile.open(archive) as package:

        def text(name: str) -> str:
            file = package.extractfile(f"package/dist/models/mobilenet_v2/{name}.min.js")
            assert file is not None
            return file.read().decode()

        (encoded,) = re.findall(r'exports="([\w+/=]+)"', text("group1-shard1of1"))
        described = _TENSOR.findall(text("model"))
    data = np.frombuffer(base64.b64decode(encoded), np.uint8)
    tensors = {}
    start = 0
    for name, sides, least, step in described:
        shape = [int(side) for side in sides.split(",")]
        end = start + int(np.prod(shape))
        values = data[start:end].reshape(shape).astype(np.float32)
        tensors[name] = torch.from_numpy(values * np.float32(step) + np.float32(least))
        start = end
    assert start == len(data), f"{len(data) - start} bytes belong to no tensor"
    return tensors


def renamed(keras: str, tensor: Tensor) -> tuple[str, Tensor]:
    """A tensor's name in `operators.mobilenets.MobileNetNsfw`'s file, and its layout there."""
    layer, kind = keras.split("/")
    if match := re.fullmatch(r"dense_(\d)", layer):
        place = f"fc.{int(match[1]) - 1}"
        return (f"{place}.bias", tensor) if kind == "bias" else (f"{place}.weight", tensor.T)
    layer = re.sub("^expanded_conv_", "block_0_", layer)
    layer = re.sub(r"^block_(\d+)_", r"blocks.\1.", layer).replace("depthwise", "dw")
    layer = _ENDS.get(layer, layer.replace("_BN", "_bn"))
    if kind in _NORM:
        return f"{layer}.{_NORM[kind]}", tensor
    order = (2, 3, 0, 1) if kind == "depthwise_kernel" else (3, 2, 0, 1)
    return f"{layer}.weight", tensor.permute(order)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    made = dict(renamed(name, tensor) for name, tensor in published(arguments.archive).items())
    save_file({name: made[name].half().contiguous() for name in sorted(made)}, arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")
