"""What holds for every test: 8 virtual CPU devices, strict shapes, quick compilation, and no write
outside the repo.

The settings must stand before jax is imported, so they are made here, at import, and in the
environment, where subprocesses and the workers of pytest-xdist inherit them.
"""

import gc
import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py could choose its devices.")

# A cache that git ignores. On CPU it saves most of the time of a second run.
CACHE = Path(__file__).resolve().parent.parent / ".cache"
DEVICES = 8
MANY_MAPS = 10_000
_FLAGS = [f"--xla_force_host_platform_device_count={DEVICES}"]
# Most of the suite's time is compilation. Without most optimisations, and with the older code
# generator in one piece, a program compiles in a quarter of the time, and computes the same.
# `JAX_DISABLE_MOST_OPTIMIZATIONS=0 make test` compiles as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
_quick = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"].lower() in ("1", "true")
if _quick and version("jaxlib").startswith("0.10."):  # a flag that a release lacks ends the process
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
_TEST_ONLY = ("JAX_NUMPY_RANK_PROMOTION", "XLA_FLAGS")
# Kept in the environment, as a worker of pytest-xdist begins with what its parent has set.
_BEFORE = "STEPRL_TESTS_BEFORE"
os.environ.setdefault(_BEFORE, json.dumps({name: os.environ.get(name) for name in _TEST_ONLY}))
_original = json.loads(os.environ[_BEFORE])

os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the accelerator of a machine is for benchmarks
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# Without the lines of Python that each operation comes from, programs are traced more quickly.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ["MPLBACKEND"] = "Agg"
os.environ["MPLCONFIGDIR"] = str(CACHE / "matplotlib")
os.environ["HF_HOME"] = str(CACHE / "huggingface")
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network is a broken test
os.environ["WANDB_MODE"] = "disabled"
os.environ["HOME"] = str(CACHE / "home")
for _name in ("MPLCONFIGDIR", "HF_HOME", "HOME"):
    Path(os.environ[_name]).mkdir(parents=True, exist_ok=True)


# Rewritten test files are kept even where Python is told to write no bytecode: each worker reads all.
_WRITES_NO_BYTECODE = sys.dont_write_bytecode
sys.dont_write_bytecode = False


def pytest_collection_finish() -> None:
    """What stands by now stays to the end, so the garbage collector need not look at it again."""
    sys.dont_write_bytecode = _WRITES_NO_BYTECODE
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _memory_maps() -> int:
    """How many of them this process holds; as if too many, where that cannot be read."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return MANY_MAPS


@pytest.fixture(scope="module", autouse=True)
def give_programs_back() -> Iterator[None]:
    """What files compiled is kept for the next ones, until it is much.

    A compiled program holds several memory maps. All of the suite's in one process are more than
    Linux allows by default (65,530), and where the next one is refused, the compiler crashes.
    """
    yield
    if "jax" in sys.modules and _memory_maps() >= MANY_MAPS:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture
def devices() -> list:
    """The 8 virtual CPU devices."""
    import jax

    found = jax.devices("cpu")
    assert len(found) == DEVICES
    return found


@pytest.fixture
def plain_env() -> dict[str, str]:
    """The environment for a subprocess that stands for a user: one device, usual shape rules.

    It compiles without most optimisations too, and with the same cache.
    """
    env = dict(os.environ)
    env.pop(_BEFORE)
    for name, value in _original.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    return env
