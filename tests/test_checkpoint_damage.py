"""Damaged checkpoints: whatever is not as it was written is found, and an older step is used."""

import errno
import json
import logging
import shutil
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from steprl.checkpoint import (
    Checkpointer,
    DamagedCheckpoint,
    all_steps,
    begun,
    checksums,
    latest_step,
    restore,
    saving,
    set_aside,
)
from steprl.checkpoint.checksums import array_checksums, checksum_on_device, checksum_on_host
from steprl.disk import WriteError

DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16, np.int32, np.uint8, np.int8, np.bool_,
          np.uint16, np.complex64, ml_dtypes.float8_e4m3fn)  # fmt: skip


def state_of(step):
    return {
        "w": jnp.arange(4096, dtype=jnp.float32).reshape(64, 64) + step,
        "half": jnp.full(8, step, jnp.bfloat16),
        "key": jax.random.key(step),
        "host": np.arange(3, dtype=np.int64) + step,
    }


def bits(state):
    leaves = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(state)
    ]
    return [np.asarray(x).tobytes() for x in leaves]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    with Checkpointer(folder) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state_of(step), {"phase": "rl"})
    return folder


@pytest.fixture
def steps(written, tmp_path):
    """Checkpoints of the steps 1 and 2."""
    return shutil.copytree(written, tmp_path / "checkpoints")


def without_checksums(folder):
    """As an earlier version wrote it."""
    (folder / "checksums.json").unlink()
    file = folder / "meta" / "metadata"
    record = json.loads(file.read_text())
    del record["checksums"]
    file.write_text(json.dumps(record))


def flip(content, position):
    changed = bytearray(content)
    changed[position] ^= 4
    return bytes(changed)


DAMAGE = {
    "missing": None,
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "middle bit": lambda content: flip(content, len(content) // 2),
    "last bit": lambda content: flip(content, -1),
    "garbage": lambda content: np.random.default_rng(0).bytes(len(content)),
}
# What orbax writes last, for itself: of when the step was complete.
NOTES = ("_CHECKPOINT_METADATA", "commit_success.txt")


def damaged_files(folder):
    return [
        f
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.relative_to(folder).as_posix() not in NOTES
    ]


def damage(file, how):
    """Damages a file, and gives back how to mend it."""
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(DAMAGE[how](content))
    return lambda: file.write_bytes(content)


# Whatever is damaged


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_of_any_file_is_found_and_the_older_step_is_used(steps, caplog, how):
    files = damaged_files(steps / "2")
    assert len(files) > 10
    for file in files:
        mend = damage(file, how)
        caplog.clear()
        restored = restore(steps, state_of(0))
        assert restored.step == 1 and bits(restored.state) == bits(state_of(1)), file
        (line,) = [record.getMessage() for record in caplog.records]
        assert f"{steps}: step 2 is damaged, " in line and line.endswith("going back to step 1")
        assert file.relative_to(steps / "2").as_posix() in line
        mend()
    assert restore(steps, state_of(0)).step == 2


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", NOTES)
def test_damage_of_the_notes_of_orbax_changes_no_bit(steps, name, how):
    damage(steps / "2" / name, how)
    restored = restore(steps, state_of(0))
    assert bits(restored.state) == bits(state_of(restored.step))


@pytest.mark.parametrize("part", ["state", "meta"])
def test_a_step_of_which_a_half_is_missing_is_damaged(steps, caplog, part):
    shutil.rmtree(steps / "2" / part)
    assert restore(steps, state_of(0)).step == 1
    assert f"step 2 is damaged, {part} is missing" in caplog.text
    assert latest_step(steps) == 1


def test_a_step_in_the_folder_of_another_is_damaged(steps, caplog):
    (steps / "2").rename(steps / "7")
    assert restore(steps, state_of(0)).step == 1
    assert "step 7 is damaged, it holds step 2: rename the folder back" in caplog.text


def test_an_empty_step_is_damaged(steps, caplog):
    (steps / "3").mkdir()
    assert restore(steps, state_of(0)).step == 2
    assert "step 3 is damaged, state is missing; going back to step 2" in caplog.text


@pytest.mark.parametrize("position", range(0, 1000, 100))
def test_a_flipped_bit_of_an_array_is_found_in_files_too_large_to_be_read_twice(
    tmp_path, monkeypatch, position
):
    monkeypatch.setattr(checksums, "_READ_AGAIN", 0)
    noise = np.random.default_rng(0).bytes(4 * 300)  # so that compression leaves every bit
    state = {"w": jnp.asarray(np.frombuffer(noise, np.uint32))}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.save(2, state)
    (data,) = [f for f in (tmp_path / "2").rglob("d/*") if f.stat().st_size > 1200]
    start = data.read_bytes().find(noise[:16])
    assert start >= 0
    data.write_bytes(flip(data.read_bytes(), start + position))
    with pytest.raises(DamagedCheckpoint, match=r"2 is damaged: (w has other bits|state cannot)"):
        restore(tmp_path, state, step=2)
    assert restore(tmp_path, state).step == 1


# What follows


def test_a_damaged_step_that_is_asked_for_by_name_is_an_error(steps):
    (steps / "2" / "meta" / "metadata").write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match=r"/2 is damaged: meta/metadata has 0 bytes, "):
        restore(steps, state_of(0), step=2)
    assert restore(steps, state_of(0), step=1).step == 1


def test_where_all_steps_are_damaged_one_error_says_what_is_wrong_with_each(steps, caplog):
    (steps / "2" / "checksums.json").unlink()
    shutil.rmtree(steps / "1" / "state")
    with pytest.raises(DamagedCheckpoint) as caught:
        restore(steps, state_of(0))
    message = str(caught.value)
    assert "\n" not in message and str(steps) in message
    assert "step 2 is damaged, checksums.json is missing" in message
    assert "step 1 is damaged, state is missing" in message and "delete the folder" in message
    assert begun(steps)  # so nobody takes it for a run that has not begun


def test_reading_changes_nothing_on_disk(steps):
    damage(steps / "2" / "state" / "_METADATA", "last bit")
    before = {f: f.read_bytes() for f in steps.rglob("*") if f.is_file()}
    restore(steps, state_of(0))
    assert {f: f.read_bytes() for f in steps.rglob("*") if f.is_file()} == before


def test_damaged_steps_are_set_aside_and_saving_goes_on(steps, caplog):
    (steps / "2" / "checksums.json").unlink()
    (steps / "3").mkdir()
    step = restore(steps, state_of(0)).step
    assert set_aside(steps, above=step) == ["2.damaged", "3.damaged"]
    assert f"{steps / '2'} is kept as 2.damaged" in caplog.text
    assert (steps / "2.damaged" / "state").is_dir() and all_steps(steps) == [1]
    with Checkpointer(steps, max_to_keep=2) as checkpointer:
        for step in (2, 3, 4):
            checkpointer.save(step, state_of(step))
    assert all_steps(steps) == [3, 4] and (steps / "2.damaged" / "state").is_dir()
    assert bits(restore(steps, state_of(0)).state) == bits(state_of(4))
    (steps / "4" / "checksums.json").unlink()
    (steps / "4.damaged").mkdir()
    assert set_aside(steps, above=3) == ["4.damaged-2"]


def test_a_checkpoint_of_an_earlier_version_is_read_and_said_to_be_unverified(steps, caplog):
    without_checksums(steps / "2")
    restored = restore(steps, state_of(0))
    assert restored.step == 2 and bits(restored.state) == bits(state_of(2))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"{steps / '2'} was saved without checksums: it is not verified"


@pytest.mark.parametrize("how", ["missing", "empty", "truncated"])
def test_files_of_an_earlier_version_that_cannot_be_read_are_damage_too(steps, caplog, capfd, how):
    without_checksums(steps / "2")
    for name in ("meta/metadata", "state/manifest.ocdbt"):
        mend = damage(steps / "2" / name, how)
        assert restore(steps, state_of(0)).step == 1
        mend()
    assert not capfd.readouterr().err  # orbax reports nothing beside it


@pytest.mark.parametrize(
    "record",
    ["[]", "{}", '{"leaves": [], "meta": {}}', '{"leaves": {"w": 3}, "meta": {}}', "1", "null"],
)
def test_a_record_of_another_form_is_damage(steps, record):
    without_checksums(steps / "2")
    (steps / "2" / "meta" / "metadata").write_text(record)
    with pytest.raises(DamagedCheckpoint, match="is not the record of a checkpoint"):
        restore(steps, state_of(0), step=2)


@pytest.mark.parametrize(
    "error", [MemoryError(), PermissionError(13, "Permission denied"),
              ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")],
)  # fmt: skip
def test_what_says_nothing_about_the_files_is_no_damage(steps, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointHandler.restore", fail)
    with pytest.raises(type(error)):
        restore(steps, state_of(0))


def test_another_model_is_no_damage(steps):
    other = state_of(0) | {"w": jnp.zeros(3)}
    with pytest.raises(ValueError, match="holds another state") as caught:
        restore(steps, other)
    assert not isinstance(caught.value, DamagedCheckpoint)


def test_a_step_that_its_run_deletes_while_it_is_read_is_passed_over(steps, monkeypatch, caplog):
    read = checksums.check_files

    def delete_first(folder):
        if folder.name == "2":
            shutil.rmtree(folder)
        return read(folder)

    monkeypatch.setattr("steprl.checkpoint.restoring.check_files", delete_first)
    assert restore(steps, state_of(0)).step == 1
    assert not caplog.records


# Checksums


def finaliser(h):
    """`fmix32`, written from its source."""
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def test_the_checksum_is_the_sum_of_mixed_words():
    assert finaliser(1) == 0x514E28B7  # of the reference implementation
    x = np.array([1.5, -0.0, 3.0], np.float32)
    words = struct.unpack("<3I", x.tobytes())
    expected = sum(finaliser(w ^ finaliser(i)) for i, w in enumerate(words)) % 2**32
    assert checksum_on_host(x) == expected == int(checksum_on_device(jnp.asarray(x)))


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [*((dtype, (3, 5)) for dtype in DTYPES), *((np.float32, s) for s in [(), (7,), (2, 3, 4)])],
)
def test_host_and_device_agree(dtype, shape):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.random.default_rng(0).integers(0, 2 if dtype == np.bool_ else 256, size, np.uint8)
    x = raw.view(dtype).reshape(shape)
    assert checksum_on_host(x) == int(checksum_on_device(jnp.asarray(x)))


def test_chunks_make_no_difference(monkeypatch):
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    whole = checksum_on_host(x)
    monkeypatch.setattr(checksums, "_CHUNK", 64)
    assert checksum_on_host(x) == whole


@settings(max_examples=50, deadline=None)
@given(
    words=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40),
    place=st.integers(0, 1000),
    bit=st.integers(0, 31),
)
def test_any_flipped_bit_changes_it(words, place, bit):
    x = np.array(words, np.uint32)
    y = x.copy()
    y[place % len(x)] ^= np.uint32(1 << bit)
    assert checksum_on_host(x) != checksum_on_host(y)


@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=40, unique=True))
def test_the_order_counts(words):
    x = np.array(words, np.uint32)
    assert checksum_on_host(x) != checksum_on_host(x[::-1])


@pytest.mark.parametrize("spec", [P(), P("a"), P(None, "b"), P("b", "a"), P(("a", "b"))])
def test_the_layout_makes_no_difference(devices, spec):
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = jax.random.normal(jax.random.key(0), (8, 16))
    assert int(checksum_on_device(jax.device_put(x, NamedSharding(mesh, spec)))) == (
        checksum_on_host(np.asarray(x))
    )


def test_large_arrays_are_summed_where_they_are(monkeypatch):
    monkeypatch.setattr(checksums, "_ON_HOST", 4)
    large = {"large": jnp.arange(9.0), "key": jax.random.split(jax.random.key(0), 8)}
    on_device = array_checksums(large)
    monkeypatch.undo()
    assert on_device == array_checksums(large)


# A disk that refuses


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_step_that_cannot_be_written_is_named_with_the_last_that_was(
    tmp_path, monkeypatch, capfd, number
):
    full = []

    def write(folder):
        if full:
            raise OSError(number, "as the system says")
        checksums.write_file_checksums(folder)

    monkeypatch.setattr(saving, "write_file_checksums", write)
    with pytest.raises(WriteError) as caught, Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state_of(1))
        checkpointer.wait()
        full.append(True)
        checkpointer.save(2, state_of(2))
    assert str(caught.value) == (
        f"{tmp_path / '2'} cannot be written: as the system says; the last saved step is 1"
    )
    assert not capfd.readouterr().err
    full.clear()
    assert restore(tmp_path, state_of(0)).step == 1
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(2, state_of(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="file/checkpoints cannot be written: Not a directory"):
        Checkpointer(tmp_path / "file" / "checkpoints")


def test_the_log_is_that_of_the_package(steps, caplog):
    (steps / "3").mkdir()
    with caplog.at_level(logging.WARNING, "steprl"):
        restore(steps, state_of(0))
    assert [record.name for record in caplog.records] == ["steprl"]
