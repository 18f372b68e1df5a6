"""The head of a GGUF file, walked strictly: everything that it names has to lie inside of the file.

The package `gguf` reads what it is told to read. In a file that is cut off or damaged it takes numbers
from behind the end, or builds lists of any length.

The form: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any

from steprl.models.files import check_content

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)


class _Damaged(Exception):
    """What is wrong, without the name of the file."""


def check_header(path: Path) -> None:
    """Checks magic number, version, metadata, and where each tensor lies.

    Raises:
        ValueError: the file is another one, cut off, or damaged; the message names it.
    """
    from gguf.constants import GGML_QUANT_SIZES

    check_content(path)
    with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ValueError(
                f"{path} is no GGUF file; for other weights give the directory that they lie in, with "
                "its config.json"
            )
        try:
            _Walk(data, {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}).whole_file()
        except (_Damaged, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is cut off or damaged ({error}): copy or download it again"
            ) from error


class _Walk:
    """A place in a file that only moves forward."""

    def __init__(self, data: mmap.mmap, block_sizes: dict[int, tuple[int, int]]):
        self._data, self._size, self._place = data, len(data), 4
        self._block_sizes = block_sizes
        self._order = "<"

    def whole_file(self) -> None:
        if self._scalar("I") & 0xFFFF == 0:  # of a machine with the other byte order
            self._order = ">"
        self._place = 4
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise _Damaged(f"its version is {version}, known are 2 and 3")
        tensors, entries = self._scalar("Q"), self._scalar("Q")
        names: set[str] = set()
        alignment = 32
        for _ in range(entries):
            name = self._string("the name of an entry")
            if name in names:
                raise _Damaged(f"the entry {name} stands there twice")
            names.add(name)
            value = self._value(self._scalar("I"), name)
            if name == "general.alignment":
                alignment = value
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise _Damaged(f"general.alignment={alignment!r} is no power of two")
        spans = [self._tensor() for _ in range(tensors)]
        start = -(-self._place // alignment) * alignment
        end, before = 0, "the metadata"
        for offset, length, name in sorted(spans):
            if offset % alignment or offset < end:
                raise _Damaged(f"the tensor {name} begins inside of {before}")
            end, before = offset + length, f"the tensor {name}"
            if start + end > self._size:
                raise _Damaged(
                    f"the tensor {name} ends at byte {start + end}, and the file at {self._size}"
                )

    def _take(self, length: int, what: str) -> bytes:
        if length > self._size - self._place:
            raise _Damaged(f"{what} ends behind the end of the file, at byte {self._size}")
        taken = self._data[self._place : self._place + length]
        self._place += length
        return taken

    def _scalar(self, form: str, what: str = "a number") -> Any:
        form = self._order + form
        return struct.unpack(form, self._take(struct.calcsize(form), what))[0]

    def _string(self, what: str) -> str:
        return self._take(self._scalar("Q", what), what).decode("utf-8")

    def _value(self, kind: int, name: str) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind], name)
        if kind == _STRING:
            return self._string(name)
        if kind != _ARRAY:
            raise _Damaged(f"{name} is of the unknown type {kind}")
        kind, count = self._scalar("I", name), self._scalar("Q", name)
        if kind in _SCALARS:
            self._take(count * struct.calcsize(f"<{_SCALARS[kind]}"), name)
        elif kind == _STRING:
            for _ in range(count):
                self._string(name)
        else:
            raise _Damaged(f"{name} is an array of the unknown type {kind}")
        return None

    def _tensor(self) -> tuple[int, int, str]:
        name = self._string("the name of a tensor")
        rank = self._scalar("I")
        if not 1 <= rank <= 4:
            raise _Damaged(f"the tensor {name} has {rank} dimensions")
        shape = [self._scalar("Q") for _ in range(rank)]
        kind, offset = self._scalar("I"), self._scalar("Q")
        if kind not in self._block_sizes:
            raise _Damaged(f"the tensor {name} is of the unknown type {kind}")
        block, size = self._block_sizes[kind]
        if 0 in shape or shape[0] % block:
            raise _Damaged(f"the tensor {name} of type {kind} has the shape {shape}")
        return offset, math.prod(shape) // block * size, name
