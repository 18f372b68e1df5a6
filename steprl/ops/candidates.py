"""Which tokens may be branched at all: by what they say (APPO), or by where they stand (ARPO)."""

import string
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from steprl.ops.segments import _check_step_ids, step_starts


def worded_tokens(texts: Sequence[str], *, punctuation: bool = True) -> np.ndarray:
    """Which tokens of a vocabulary say something, a function of the host called once.

    The candidates of APPO (https://arxiv.org/abs/2606.12384) are the sampled tokens whose text is
    not blank: `jnp.asarray(worded)[tokens] & (step_ids >= 0)`.

    Args:
        texts: text of each token, by id.
        punctuation: False leaves out the tokens of nothing but punctuation as well.

    Returns:
        [V] bool.

    Note:
        The reference has both rules: its trainer keeps punctuation, its rollout helper does not,
        and leaves such tokens out of the statistics of the scores too (`where_t` of
        `appo_branching_scores`).

    Example:
        >>> print(worded_tokens(["a", " ", ",", " b.", ""], punctuation=False))
        [ True False False  True False]
    """
    idle = set(string.punctuation) if not punctuation else set()
    return np.array([bool(set(text.strip()) - idle) for text in texts], bool)


def arpo_candidates(step_ids_t: jax.Array) -> jax.Array:
    """The tokens that directly follow what a tool said: the first of every step but the row's first.

    ARPO (https://arxiv.org/abs/2507.19849) looks at the entropy there and nowhere
    else; with `appo_branching_scores` without future values and `select_branch_points` this is its
    branching. The branch shares what stands before such a token, and samples it anew.

    Args:
        step_ids_t: [T] step of each token, -1 where dark.

    Returns:
        [T] bool.

    Raises:
        AssertionError: the input is not of rank 1, or not an integer array.

    Example:
        >>> import jax.numpy as jnp
        >>> print(arpo_candidates(jnp.array([-1, 0, 0, -1, 1, 1])).astype(int))
        [0 0 0 0 1 0]
    """
    _check_step_ids(step_ids_t)
    starts_t = step_starts(step_ids_t)
    return starts_t & (jnp.cumsum(starts_t, dtype=jnp.int32) > 1)
