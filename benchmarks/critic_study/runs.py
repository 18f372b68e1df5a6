"""One job: all seeds of a variant in a cell, batched in one program; its results go to a file."""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from laboratory import design
from laboratory.jobs import PANEL_KEY, TABLE_KEY, WARM_KEY, mapped, warm_start, write

from critic_study import variants
from steprl.laboratory import Program, ValueSample, make_program, make_value_audit

AUDIT_KEY = 4
KEPT = {
    "tokens": "token/total", "success": "rollout/success_rate", "entropy": "actor/entropy",
    "explained": "critic/vf_explained_var", "nonfinite": "train/nonfinite",
}  # fmt: skip
LOOKS = ("middle", "end")


def file_of(cell: str, variant: str, seeds: int, folder: Path) -> Path:
    """Where the results of a job are kept."""
    return folder / cell / f"{variant}.{seeds}.npz"


def run(cell: str, variant: str, seeds: int, folder: Path) -> None:
    """Trains from the warm start of the cell until the tokens are spent, and looks at the critic in the
    middle and at the end."""
    begin_time = time.perf_counter()
    # The table's own seeds, so that all variants begin with the same tasks.
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(TABLE_KEY), s))(jnp.arange(seeds))
    fixed = variants.program_of(variant)
    parts = _compiled(cell, fixed, variant)
    settings = {
        name: jnp.full(seeds, x, jnp.float32)
        for name, x in variants.settings_of(cell, variant).items()
    }
    state = parts.begin(_with_new_critic(parts.program, warm_start(cell, folder)), settings)
    metrics: list[dict[str, np.ndarray]] = []
    looks: dict[str, np.ndarray] = {}
    budget = design.token_budget(cell)
    while not metrics or metrics[-1]["tokens"][:, -1].min() < budget:
        state, found = parts.advance(state, keys, settings)
        metrics.append(jax.device_get(found))
        if len(metrics) * design.CHUNK == variants.MIDDLE:
            looks |= _look(parts, state.params, "middle")
    looks |= _look(parts, state.params, "end")
    table = {name: np.concatenate([m[name] for m in metrics], axis=1) for name in metrics[0]}
    table["heldout"] = np.mean(parts.evaluate(state.params), axis=1)
    seconds = np.array([time.perf_counter() - begin_time])
    write(file_of(cell, variant, seeds, folder), table | looks | {"seconds": seconds})


class _Parts:
    """The compiled functions of a program, each over all seeds."""

    def __init__(self, cell: str, variant: str):
        config, method = variants.config_of(cell, variant), variants.method_of(variant)
        self.program = program = make_program(config, design.METHODS[method].algorithm)

        def advance(state: Any, key: jax.Array, settings: Any) -> Any:
            def step(state: Any, _: None) -> Any:
                state, metrics = program.iterate(state, key, settings)
                nothing = jnp.full((), jnp.nan)
                return state, {name: metrics.get(key, nothing) for name, key in KEPT.items()}

            return jax.lax.scan(step, state, length=design.CHUNK)

        each = mapped(lambda one: advance(*one))
        self.begin = jax.jit(jax.vmap(program.begin, in_axes=(None, 0)))
        self.advance = jax.jit(lambda *all_runs: each(all_runs), donate_argnums=0)
        panel, look = jax.random.key(PANEL_KEY), jax.random.key(AUDIT_KEY)
        self.evaluate = jax.jit(
            mapped(lambda params: program.evaluate(params, panel, design.HELDOUT))
        )
        self.audit = None
        if variant != variants.GRPO:
            sizes = (variants.ROWS, variants.STATES, variants.CONTINUATIONS)
            audit = make_value_audit(program, config, *sizes)
            self.audit = jax.jit(mapped(lambda params: audit(params, look)))


_last: tuple[Any, _Parts] | None = None


def _compiled(cell: str, fixed: tuple[str, ...], variant: str) -> _Parts:
    """Those of the last job where this one needs the same program."""
    global _last
    if _last is None or _last[0] != (cell, fixed):
        _last = ((cell, fixed), _Parts(cell, variant))
    return _last[1]


def _with_new_critic(program: Program, warm: Any) -> Any:
    """The policy of the warm start; of a critic, whatever its parts are, the weights that it would have
    begun with there."""
    first = jax.jit(program.policy.init)(jax.random.split(jax.random.key(WARM_KEY))[0])
    return first | {"decoder": warm["decoder"]}


def _look(parts: _Parts, params: Any, when: str) -> dict[str, np.ndarray]:
    """[R] how well the critic of each run agrees with the truth; nothing without a critic."""
    if parts.audit is None:
        return {}
    found = jax.device_get(parts.audit(params))
    runs = [ValueSample(*x) for x in zip(*found, strict=True)]
    numbers = {
        "rank": [one.rank_correlation() for one in runs],
        "ceiling": [one.ceiling() for one in runs],
        "true_explained": [one.explained_variance() for one in runs],
        "spread": [float(np.std(one.value()[0])) for one in runs],
        "error": [float(np.sqrt(np.mean(one.value()[1] ** 2))) for one in runs],
    }
    return {f"{name}_{when}": np.array(x) for name, x in numbers.items()}
