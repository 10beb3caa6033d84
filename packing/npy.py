"""Flat npy files of integers, written and read without trust in what they say."""

import io
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_VALUE = 2**31 - 1  # ids and codes are int32

# Magic, version 1.0, the header's length, the header. A count of at most 18 digits stays an int64.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[^']{1,8})', 'fortran_order': False, "
    rb"'shape': \((?P<count>[0-9]{1,18}),\), \} *\n",
    re.DOTALL,
)


def to_npy(array: NDArray[np.int32], dtype: np.dtype[Any]) -> bytes:
    """A flat array as an npy file of ``dtype``; the bytes are a function of the arguments alone."""
    out = io.BytesIO()
    np.lib.format.write_array(out, array.astype(dtype), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def read_npy(data: bytes, name: str, *dtypes: np.dtype[Any]) -> NDArray[np.int32]:
    """A flat array of one of ``dtypes`` whose header agrees with the bytes that follow it.

    Read without NumPy: `np.load` trusts the header, and parses it with ``ast``, which on Python
    3.11 fails now and then when two of the reader's threads do so at once.
    """
    found = _HEADER.match(data)
    if found is None:
        raise ValueError(f"{name} is not an npy file of version 1.0 that holds a flat array")
    start, size = found.end(), len(data) - found.end()
    length = int.from_bytes(data[8:10], "little") + 10  # as the file says it
    stored, count = found["dtype"].decode("ascii", "replace"), int(found["count"])
    dtype = next((dtype for dtype in dtypes if dtype.str == stored), None)
    if dtype is None or length != start or count * dtype.itemsize != size:
        raise ValueError(
            f"{name} says {count} values of {stored} after {length} bytes but holds {size} bytes "
            f"after {start}, expected flat {' or '.join(dtype.str for dtype in dtypes)}"
        )
    values = np.frombuffer(data, dtype, offset=start)
    if dtype.itemsize >= 4 and count and values.max() > MAX_VALUE:
        raise ValueError(f"{name} holds the code {values.max()}: at most {MAX_VALUE} are possible")
    return values.astype(np.int32)
