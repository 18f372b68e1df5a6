"""Checksums of the arrays and of the files of a checkpoint.

Of an array, whatever its layout over devices and processes: its bits are read as 32-bit words
w₀, w₁, ... in row-major order (smaller elements widened, larger ones split), and

    checksum = Σᵢ mix(wᵢ ⊕ mix(i))  mod 2³²,   mix = the finaliser of MurmurHash3, a bijection

Any change of one word changes it, as do, but for one case in 2³², all other changes. The sum has no
order, so each device adds up its own part: neither saving nor restoring gathers an array, and the
cost is one pass over memory. Of a file, its size, and the CRC-32 of those up to `_READ_AGAIN` bytes:
what the larger ones hold is in the arrays, so it is not read twice.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

FILES = "checksums.json"
_READ_AGAIN = 16 * 2**20
_ON_HOST = 2**16  # elements up to which a copy costs less than the compilation of a program
_CHUNK = 2**18  # words that stay in the cache of a processor
# Written when the checksums of the others are already on disk, and read by nothing here.
_NOTES_OF_ORBAX = ("_CHECKPOINT_METADATA", "commit_success.txt")


class DamagedCheckpoint(ValueError):
    """A checkpoint is not as it was written; names the folder and what is wrong.

    Attributes:
        folder: of the step, or of all steps.
        what: what is wrong there.
    """

    def __init__(self, folder: object, what: str) -> None:
        super().__init__(f"{folder} is damaged: {what}")
        self.folder, self.what = folder, what


def array_checksums(leaves: Mapping[str, Any]) -> dict[str, int]:
    """The checksum of each array, jax or numpy."""
    return {name: int(x) for name, x in jax.device_get(_all(leaves)).items()}


def _all(leaves: Mapping[str, Any]) -> dict[str, Any]:
    # All are started before the first is waited for.
    return {name: _checksum(leaf) for name, leaf in leaves.items()}


def _checksum(x: Any) -> Any:
    if not isinstance(x, jax.Array):
        return checksum_on_host(np.asarray(x))
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.is_fully_addressable and (x.size <= _ON_HOST or _bits(x.dtype) < 8):
        return checksum_on_host(np.asarray(x))
    return checksum_on_device(x)


def checksum_on_host(x: np.ndarray) -> int:
    """The checksum of a numpy array."""
    words = _words_on_host(x)
    total = 0
    with np.errstate(over="ignore"):
        for first in range(0, len(words), _CHUNK):
            chunk = words[first : first + _CHUNK]
            index = np.arange(first, first + len(chunk)).astype(np.uint32)
            total += int(np.sum(_mix(chunk ^ _mix(index)), dtype=np.uint64))
    return total % 2**32


def _words_on_host(x: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(x).reshape(-1)
    if _bits(x.dtype) < 8:
        x = x.astype(np.int8)
    size = x.dtype.itemsize
    words = x.view(np.uint32 if size >= 4 else np.dtype(f"u{size}"))
    return words.astype(np.uint32, copy=False)


def checksum_on_device(x: jax.Array) -> jax.Array:
    """The checksum of a jax array, a uint32 that every process has."""
    sharding = x.sharding
    everywhere = None
    if isinstance(sharding, NamedSharding):
        everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    return _program(everywhere)(x)


@lru_cache(maxsize=16)
def _program(everywhere: NamedSharding | None) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(_sum_of_words, out_shardings=everywhere)


def _sum_of_words(x: jax.Array) -> jax.Array:
    words = _words(x)
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index += along * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_mix(words ^ _mix(index)), dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag], axis=-1)
    size = x.dtype.itemsize
    kind = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)


def _bits(dtype: Any) -> int:
    name = np.dtype(dtype).name
    return 4 if name.startswith(("int4", "uint4", "float4", "int2", "uint2")) else 8


def _mix(h: Any) -> Any:
    """Of numpy or jax; https://github.com/aappleby/smhasher, `fmix32`."""
    u = jnp.uint32 if isinstance(h, jax.Array) else np.uint32
    h = (h ^ (h >> u(16))) * u(0x85EBCA6B)
    h = (h ^ (h >> u(13))) * u(0xC2B2AE35)
    return h ^ (h >> u(16))


def write_file_checksums(folder: epath.Path) -> None:
    """Writes `FILES` into the folder of a step, whose other files are complete."""
    files = {}
    for name, file in _files(folder, ""):
        size = int(file.stat().length)
        read_again = size <= _READ_AGAIN and name not in _NOTES_OF_ORBAX
        files[name] = [size if name not in _NOTES_OF_ORBAX else None,
                       zlib.crc32(file.read_bytes()) if read_again else None]  # fmt: skip
    (folder / FILES).write_text(json.dumps({"files": files, "checksum": _of_record(files)}))


def _files(folder: epath.Path, prefix: str) -> list[tuple[str, epath.Path]]:
    found = []
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if entry.is_dir():
            found += _files(entry, f"{prefix}{entry.name}/")
        elif entry.name != FILES:
            found.append((prefix + entry.name, entry))
    return found


def _of_record(record: Any) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def check_files(folder: epath.Path) -> bool:
    """Compares the files of a step with their checksums.

    Returns:
        False if it has none, as in steps that an earlier version wrote.

    Raises:
        DamagedCheckpoint: a file is missing, of another size, or has other bytes.
    """
    if not (folder / FILES).exists():
        return False
    try:
        record = json.loads((folder / FILES).read_bytes())
        files, whole = record["files"], record["checksum"] == _of_record(record["files"])
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise DamagedCheckpoint(folder, f"{FILES} is not as it was written")
    for name, (size, checksum) in files.items():
        file = folder / name
        if not file.exists():
            raise DamagedCheckpoint(folder, f"{name} is missing")
        there = int(file.stat().length)
        if size is not None and there != size:
            raise DamagedCheckpoint(folder, f"{name} has {there:,} bytes, {size:,} were written")
        if checksum is not None and zlib.crc32(file.read_bytes()) != checksum:
            raise DamagedCheckpoint(folder, f"{name} has other bytes than were written")
    _check_notes(folder)
    return True


def _check_notes(folder: epath.Path) -> None:
    """Orbax completes them last, so they have no checksum: they must be readable."""
    try:
        json.loads((folder / _NOTES_OF_ORBAX[0]).read_bytes())
    except ValueError:
        what = f"{_NOTES_OF_ORBAX[0]} is not JSON"
        raise DamagedCheckpoint(folder, what) from None
