"""Metrics: what is written is read back, also after a kill; numbers agree with their formulas."""

import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.disk import WriteError
from steprl.metrics import (
    STEP,
    CompilationCounter,
    MetricWriter,
    read_metrics,
    truncate_after,
    wilson_interval,
)


def test_rows_come_back_as_written(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricWriter(path) as writer:
        writer.write(
            1,
            {
                "actor/pg_loss": jnp.float32(0.5),
                "half": jnp.bfloat16(1.5),
                "one": jnp.ones((1,)),
                "tokens": np.int64(1 << 40),
                "done": np.bool_(True),
                "note": "ünï",
                "nothing": None,
            },
        )
        assert len(read_metrics(path)) == 1  # before close: each line is flushed
        writer.write(2, {STEP: 2, "x": 0.1})
    first, second = read_metrics(path)
    assert first == {
        STEP: 1,
        "actor/pg_loss": 0.5,
        "half": 1.5,
        "one": 1.0,
        "tokens": 1 << 40,
        "done": True,
        "note": "ünï",
        "nothing": None,
    }
    assert first["done"] is True and isinstance(first["tokens"], int)
    assert second == {STEP: 2, "x": 0.1}


def test_non_finite_numbers_are_null_in_the_file_and_not_lost(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricWriter(path) as writer:
        writer.write(1, {"a": math.nan, "b": jnp.float32(-jnp.inf), "c": 1.0, "d": None})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    raw = json.loads(path.read_text(), parse_constant=refuse)
    assert raw["a"] is None and raw["b"] is None
    (row,) = read_metrics(path)
    assert math.isnan(row["a"]) and row["b"] == -math.inf and row["c"] == 1.0 and row["d"] is None
    assert set(row) == {STEP, "a", "b", "c", "d"}


def test_arrays_and_a_contradicting_step_are_refused(tmp_path):
    with MetricWriter(tmp_path / "m.jsonl") as writer:
        with pytest.raises(ValueError, match=r"'x' is no scalar: ndarray\(2,\)"):
            writer.write(1, {"x": jnp.ones(2)})
        with pytest.raises(ValueError, match="is 3 in the metrics and 2 in the call"):
            writer.write(2, {STEP: 3})
    assert read_metrics(tmp_path / "m.jsonl") == []


def test_a_torn_last_line_is_no_row_and_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"training/global_step": 1}\n{"training/glo')
    assert [row[STEP] for row in read_metrics(path)] == [1]
    with MetricWriter(path) as writer:
        writer.write(2, {})
    assert [row[STEP] for row in read_metrics(path)] == [1, 2]


def test_truncate_after_a_resumed_step(tmp_path):
    path = tmp_path / "m.jsonl"
    assert truncate_after(path, 3) == 0 and not path.exists()
    with MetricWriter(path) as writer:
        for step in range(6):
            writer.write(step, {"x": math.nan if step == 2 else step})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b'{"sft/loss": 1.0}\n' + b"".join(lines) + b'{"torn')
    assert truncate_after(path, 3) == 2
    assert path.read_bytes() == b'{"sft/loss": 1.0}\n' + b"".join(lines[:4])
    assert truncate_after(path, 3) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


NO_ROWS = {
    "text": b"hello",
    "half a row": b'{"training/global_step": 2, "x": 1',
    "a list": b"[1, 2]",
    "a number": b"3",
    "empty": b"",
    "zeros": bytes(20),
    "not utf-8": b'{"x": "\xff"}',
    "a step that is none": b'{"training/global_step": "two"}',
    "two rows in one": b'{"training/global_step": 2}{"training/global_step": 3}',
    "nothing to decode": b'{"x": null, "non_finite": 3}',
    "not a number": b'{"x": null, "non_finite": {"x": "many"}}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("line", NO_ROWS.values(), ids=NO_ROWS)
def test_a_line_that_is_no_row_is_said_passed_over_and_set_aside(tmp_path, caplog, line):
    path = tmp_path / "m.jsonl"
    with MetricWriter(path) as writer:
        for step in range(5):
            writer.write(step, {"x": step})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + line + b"\n" + b"".join(lines[2:]))
    before = path.read_bytes()
    assert [row["x"] for row in read_metrics(path)] == [0, 1, 2, 3, 4]
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}, line 3 is no row of metrics: it is passed over"
    ]
    assert path.read_bytes() == before
    caplog.clear()
    assert truncate_after(path, 3) == 1
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}, line 3 is no row of metrics: it is moved to m.jsonl.damaged"
    ]
    assert path.read_bytes() == b"".join(lines[:4])
    assert (tmp_path / "m.jsonl.damaged").read_bytes() == line + b"\n"
    caplog.clear()
    assert truncate_after(path, 3) == 0 and len(read_metrics(path)) == 4 and not caplog.records


def test_a_disk_that_is_full_is_named_and_what_was_written_is_whole(tmp_path):
    path = tmp_path / "m.jsonl"
    with (
        pytest.raises(WriteError) as caught,
        open("/dev/full", "w") as full,
        MetricWriter(path) as writer,
    ):
        writer.write(1, {"x": 1.0})
        writer._file.close()
        writer._file = full
        writer.write(2, {"x": 2.0})
    assert str(caught.value) == f"{path} cannot be written: No space left on device"
    assert [row["x"] for row in read_metrics(path)] == [1.0]


def test_a_file_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="file/m.jsonl cannot be written: File exists"):
        MetricWriter(tmp_path / "file" / "m.jsonl")


def test_only_process_0_writes(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    with MetricWriter(path) as writer:
        writer.write(5, {})
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    other = tmp_path / "other" / "m.jsonl"
    with MetricWriter(other, wandb={}) as writer:  # nor does it need the backends
        writer.write(1, {"x": 1.0})
    assert not other.parent.exists()
    assert truncate_after(path, 0) == 0 and len(read_metrics(path)) == 1


@pytest.mark.parametrize("name", ["tensorboardX", "wandb"])
def test_a_missing_backend_is_an_error_only_if_asked_for(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    MetricWriter(tmp_path / "m.jsonl").close()
    asked = {"tensorboard_dir": tmp_path} if name == "tensorboardX" else {"wandb": {}}
    with pytest.raises(ImportError, match=f"`pip install {name}`"):
        MetricWriter(tmp_path / "m.jsonl", **asked)


class Recorder:
    """Stands for both backends."""

    def __init__(self, *args, **kwargs):
        self.calls = [("init", args, kwargs)]

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def test_backends_receive_the_rows(tmp_path, monkeypatch):
    made = []

    def make(*args, **kwargs):
        made.append(Recorder(*args, **kwargs))
        return made[-1]

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=make))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=make))
    with MetricWriter(
        tmp_path / "m.jsonl", tensorboard_dir=tmp_path / "tb", wandb={"project": "p"}
    ) as writer:
        writer.write(4, {"x": jnp.float32(2.0), "name": "text"})
    board, wandb = made
    assert board.calls == [
        ("init", (str(tmp_path / "tb"),), {}),
        ("add_scalar", ("x", 2.0, 4), {}),
        ("close", (), {}),
    ]
    assert wandb.calls == [
        ("init", (), {"project": "p"}),
        ("log", ({STEP: 4, "x": 2.0, "name": "text"},), {"step": 4}),
        ("finish", (), {}),
    ]


def test_wilson_interval_table():
    # Reference values: Newcombe (1998), "Two-sided confidence intervals for the single proportion".
    for successes, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_edges_and_symmetry():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 7).low == 0.0 and wilson_interval(7, 7).high == 1.0
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low))
    # Its ends are where the score test is at its border: |p - q| = z sqrt(q (1 - q) / n).
    for q in (low, high):
        assert abs(0.3 - q) == pytest.approx(1.959964 * math.sqrt(q * (1 - q) / 10), abs=1e-6)
    with pytest.raises(ValueError, match="8 successes of 7"):
        wilson_interval(8, 7)


def test_compilations_are_counted_by_name():
    @jax.jit
    def double(x):
        return x * 2

    shapes = [jnp.ones(3), jnp.ones(4), jnp.ones(3)]
    with CompilationCounter() as counter:
        for x in shapes:
            double(x).block_until_ready()
    assert counter.count == 2
    assert [name for name in counter.names if "double" in name], counter.names
    assert counter.seconds > 0
    double(jnp.ones(5))  # after the context: not counted
    assert counter.count == 2


def test_programs_of_the_persistent_cache_count_too():
    def compile_once():
        with CompilationCounter() as counter:
            jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T)(np.ones((7, 5), np.float32))
        return counter.count

    first = compile_once()
    jax.clear_caches()
    assert compile_once() == first == 1


def test_counters_nest():
    with CompilationCounter() as outer:
        jax.jit(lambda x: x + 1)(np.ones(2, np.float32))
        with CompilationCounter() as inner:
            jax.jit(lambda x: x + 2)(np.ones(2, np.float32))
    assert (outer.count, inner.count) == (2, 1)
