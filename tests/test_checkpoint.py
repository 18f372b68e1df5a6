"""Checkpoints: the same bits come back, anywhere, or an error says why not."""

import logging
import shutil
import subprocess
import sys
import textwrap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from steprl.checkpoint import Checkpointer, all_steps, latest_step, restore


class TrainState(NamedTuple):
    step: jax.Array
    params: dict
    opt_state: optax.OptState
    key: jax.Array


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def make_state(key, width=4):
    keys = jax.random.split(key, 3)
    params = {
        "embed": {"w": jax.random.normal(keys[0], (8, width), jnp.bfloat16)},
        "layers": {"0": {"w": jax.random.normal(keys[1], (width, 3))}},
        "steps": jnp.arange(5, dtype=jnp.int32),
    }
    return TrainState(jnp.int32(7), params, OPTIMIZER.init(params), keys[2])


def bits(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        assert jax.random.key_impl(x) is not None
        x = jax.random.key_data(x)
    return np.asarray(x).tobytes()


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert bits(x) == bits(y)


def save(directory, step, state, **kwargs):
    with Checkpointer(directory) as checkpointer:
        checkpointer.save(step, state, **kwargs)


def test_round_trip_is_bitwise(tmp_path):
    state = make_state(jax.random.key(0))
    # A NaN with a payload and a negative zero survive only if bits, not numbers, are kept.
    odd = jnp.asarray(np.array([0x7FC00123, 0x80000000], np.uint32).view(np.float32))
    state.params["odd"] = odd
    save(tmp_path, 3, state, meta={"cursor": [1, 2], "model": {"width": 4}})

    restored, meta, step = restore(tmp_path, jax.eval_shape(lambda: state))
    assert step == 3
    assert meta == {"cursor": [1, 2], "model": {"width": 4}}
    assert isinstance(restored, TrainState)
    assert_same_bits(restored, state)
    # Restored keys draw the same numbers.
    assert bits(jax.random.normal(restored.key)) == bits(jax.random.normal(state.key))


def test_split_keys_numpy_leaves_and_other_key_types(tmp_path):
    state = {
        "keys": jax.random.split(jax.random.key(1), 4),
        "rbg": jax.random.key(1, impl="rbg"),
        "host": np.arange(3, dtype=np.int64),
    }
    save(tmp_path, 0, state)
    restored = restore(tmp_path, state).state
    assert isinstance(restored["host"], np.ndarray)
    assert restored["host"].dtype == np.int64  # jax would have made it int32
    assert_same_bits(restored, state)


def test_donating_right_after_save_is_safe(tmp_path):
    state = {"w": jnp.arange(1 << 20, dtype=jnp.float32)}
    before = np.asarray(state["w"]).copy()
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        jax.block_until_ready(overwrite(state))
    abstract = {"w": jax.ShapeDtypeStruct(before.shape, before.dtype)}
    np.testing.assert_array_equal(restore(tmp_path, abstract).state["w"], before)


def test_restored_arrays_are_as_free_as_fresh_ones(tmp_path, devices):
    save(tmp_path, 1, {"w": jnp.ones((8, 2)), "key": jax.random.key(0)})
    abstract = jax.eval_shape(lambda: {"w": jnp.ones((8, 2)), "key": jax.random.key(0)})
    restored = restore(tmp_path, abstract).state
    assert not restored["w"].committed and not restored["key"].committed
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    other = jax.device_put(jnp.ones((8, 2)), NamedSharding(mesh, P("data")))
    assert jax.jit(jnp.add)(restored["w"], other).shape == (8, 2)  # no clash of devices


def test_resharding_between_meshes(tmp_path, devices):
    wide = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    square = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    w = jnp.arange(64, dtype=jnp.bfloat16).reshape(8, 8)
    key = jax.random.key(5)
    state = {
        "w": jax.device_put(w, NamedSharding(wide, P("data"))),
        "key": jax.device_put(key, NamedSharding(wide, P())),
    }
    save(tmp_path, 1, state)

    layout = {"w": NamedSharding(square, P("tensor", "fsdp")), "key": NamedSharding(square, P())}
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout
    )
    restored = restore(tmp_path, abstract).state
    assert restored["w"].sharding == layout["w"]
    assert restored["w"].addressable_shards[0].data.shape == (2, 4)
    assert_same_bits(restored, {"w": w, "key": key})
    # Concrete arrays say their layout, and no layout at all means one device.
    assert restore(tmp_path, state).state["w"].sharding == state["w"].sharding
    plain = restore(tmp_path, jax.eval_shape(lambda: {"w": w, "key": key})).state
    assert len(plain["w"].devices()) == 1
    assert_same_bits(plain, {"w": w, "key": key})


def test_steps_are_kept_listed_and_chosen(tmp_path):
    directory = tmp_path / "checkpoints"
    assert latest_step(directory) is None and all_steps(directory) == []
    with Checkpointer(directory, max_to_keep=2) as checkpointer:
        for step in (1, 2, 10):
            checkpointer.save(step, {"w": jnp.full(2, step)}, meta={"step": step})
        checkpointer.wait()
        assert all_steps(directory) == [2, 10]  # by number, not by name
        assert sorted(p.name for p in directory.iterdir()) == ["10", "2"]
    assert latest_step(directory) == 10
    abstract = {"w": jax.ShapeDtypeStruct((2,), jnp.int32)}
    assert restore(directory, abstract, step=2).state["w"].tolist() == [2, 2]
    assert restore(directory, abstract, step=2).meta == {"step": 2}
    with pytest.raises(FileNotFoundError, match=r"step 1 in .*\[2, 10\]"):
        restore(directory, abstract, step=1)
    with pytest.raises(FileNotFoundError, match="No checkpoint in"):
        restore(tmp_path / "absent", abstract)


def test_going_on_from_an_earlier_step(tmp_path):
    with Checkpointer(tmp_path, max_to_keep=None) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, {"w": jnp.full(2, step)})
        checkpointer.wait()
        with pytest.raises(ValueError, match="Step 2 is not above the newest saved step 3"):
            checkpointer.save(2, {"w": jnp.zeros(2)})
        assert checkpointer.delete_after(1) == [2, 3]
        checkpointer.save(2, {"w": jnp.full(2, 20)})
    assert all_steps(tmp_path) == [1, 2]
    assert restore(tmp_path, {"w": jnp.zeros(2, int)}).state["w"].tolist() == [20, 20]


def test_another_model_is_refused_leaf_by_leaf(tmp_path):
    save(tmp_path, 1, make_state(jax.random.key(0)))
    other = make_state(jax.random.key(0), width=6)
    del other.params["steps"]
    other.params["head"] = jnp.zeros(3)
    with pytest.raises(ValueError) as error:
        restore(tmp_path, jax.eval_shape(lambda: other))
    lines = str(error.value).splitlines()
    assert "  params/embed/w: stored bfloat16[8, 4], expected bfloat16[8, 6]" in lines
    assert "  params/head: not stored, expected float32[3]" in lines
    assert "  params/steps: stored int32[5], not expected" in lines
    assert not any("key" in line for line in lines[1:])  # the same in both


def test_a_dtype_is_never_cast_silently(tmp_path):
    save(tmp_path, 1, {"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"w: stored float32\[2\], expected bfloat16\[2\]"):
        restore(tmp_path, {"w": jax.ShapeDtypeStruct((2,), jnp.bfloat16)})


def test_long_lists_of_differences_are_cut(tmp_path):
    save(tmp_path, 1, {f"w{i:02}": jnp.ones(2) for i in range(30)})
    with pytest.raises(ValueError, match=r"30 of 30 leaves differ[\s\S]*and 10 more$"):
        restore(tmp_path, {f"w{i:02}": jnp.ones(3) for i in range(30)})


def test_partial_restore_reads_only_what_is_asked_for(tmp_path):
    state = make_state(jax.random.key(0))
    save(tmp_path, 1, state)
    wanted = {"params": state.params}
    with pytest.raises(ValueError, match="not expected"):
        restore(tmp_path, wanted)
    restored = restore(tmp_path, jax.eval_shape(lambda: wanted), partial=True).state
    assert_same_bits(restored, wanted)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"a": {"n": 3}}, TypeError, "Leaf 'a/n' is a int, not an array"),
        ({"a": np.zeros((0, 3))}, ValueError, "without elements cannot be saved: a"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(tmp_path, state, error, message):
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(error, match=message):
        checkpointer.save(1, state)
    assert latest_step(tmp_path) is None


def test_killed_while_saving(tmp_path, plain_env):
    """A process that dies in the middle of step 2 leaves step 1 as the newest."""
    script = """
        import os, sys
        import numpy as np
        from steprl.checkpoint import Checkpointer
        checkpointer = Checkpointer(sys.argv[1])
        checkpointer.save(1, {"w": np.ones(3, np.float32)})
        checkpointer.wait()
        rng = np.random.default_rng(0)
        checkpointer.save(2, {"w": rng.random(1 << 24, np.float32)})  # 64 MiB, in the background
        os._exit(9)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], env=plain_env
    )
    assert run.returncode == 9
    left = {p.name for p in tmp_path.iterdir()}
    assert "2" not in left and len(left) == 2, left  # it really was in the middle
    assert latest_step(tmp_path) == 1
    # The next writer clears the rest away, whether or not it comes to that step again.
    save(tmp_path, 3, {"w": np.ones(3, np.float32)})
    assert {p.name for p in tmp_path.iterdir()} == {"1", "3"}


def test_half_a_checkpoint_is_none(tmp_path):
    save(tmp_path, 1, {"w": jnp.ones(2)})
    (tmp_path / "2").mkdir()  # a number for a name is not enough
    shutil.copytree(tmp_path / "1", tmp_path / "3.orbax-checkpoint-tmp")
    (tmp_path / "notes").mkdir()
    assert all_steps(tmp_path) == [1]


def test_logging_is_left_as_found(tmp_path, caplog):
    logger = logging.getLogger("absl")
    level = logger.level
    with caplog.at_level(logging.WARNING):
        save(tmp_path, 1, {"w": jnp.ones(2)})
        restore(tmp_path, {"w": jnp.ones(2)})
    assert logger.level == level
    assert not caplog.records
