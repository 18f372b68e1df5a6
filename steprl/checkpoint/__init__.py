"""Checkpoints: a pytree and a small JSON record per step, written in the background.

    checkpoints/<step>/state            every array leaf, in orbax's format, written by all hosts
    checkpoints/<step>/meta             names, shapes, dtypes and checksums of the leaves, versions,
                                        the caller's record
    checkpoints/<step>/checksums.json   sizes and checksums of the files

A step is written under a temporary name and renamed when complete, so a killed process leaves
nothing that `latest_step` would find. What comes back is bitwise what was saved, bfloat16, optax
states and typed PRNG keys included, and may be laid out over other devices than it was; a step of
which a bit is not as it was written is found when it is read, and the newest step that is whole is
taken instead.

    with Checkpointer("runs/a/checkpoints", max_to_keep=3) as checkpointer:
        checkpointer.save(step, state, meta={"cursor": cursor})

    abstract_state = jax.eval_shape(init, key)
    state, meta, step = restore("runs/a/checkpoints", abstract_state)
    set_aside("runs/a/checkpoints", above=step)  # what is damaged, before steps are saved there
"""

from steprl.checkpoint.best import BEST, best_steps, recorded_values
from steprl.checkpoint.checksums import DamagedCheckpoint
from steprl.checkpoint.folders import all_steps, begun, latest_step, set_aside
from steprl.checkpoint.restoring import Restored, restore
from steprl.checkpoint.saving import Checkpointer

__all__ = [
    "BEST",
    "Checkpointer",
    "DamagedCheckpoint",
    "Restored",
    "all_steps",
    "begun",
    "best_steps",
    "latest_step",
    "recorded_values",
    "restore",
    "set_aside",
]
