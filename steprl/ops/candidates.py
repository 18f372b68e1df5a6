"""Which tokens may be branched at all: by their text (APPO), or by their place (ARPO)."""

import string
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from steprl.ops.checks import check_row_step_ids
from steprl.ops.segments import step_starts


def nonblank_tokens(texts: Sequence[str], *, punctuation: bool = True) -> np.ndarray:
    """Which tokens of a vocabulary have a text that is not blank, a function of the host called once.

    The candidates of APPO (https://arxiv.org/abs/2606.12384) are the sampled tokens whose text is
    not blank: `jnp.asarray(nonblank)[tokens] & (step_ids >= 0)`.

    Args:
        texts: text of each token, by id.
        punctuation: False leaves out the tokens of nothing but punctuation as well.

    Returns:
        [V] bool.

    Note:
        The reference has both rules: its trainer keeps punctuation, its rollout helper does not,
        and leaves such tokens out of the statistics of the scores too (`where` of
        `appo_branching_scores`).

    Example:
        >>> print(nonblank_tokens(["a", " ", ",", " b.", ""], punctuation=False))
        [ True False False  True False]
    """
    left_out = set() if punctuation else set(string.punctuation)
    return np.array([bool(set(text.strip()) - left_out) for text in texts], bool)


def arpo_candidates(step_ids_t: jax.Array) -> jax.Array:
    """The tokens that directly follow a tool's output: the first of every step but the row's first.

    ARPO (https://arxiv.org/abs/2507.19849) looks at the entropy there and nowhere
    else; with `appo_branching_scores` without future values and `select_branch_points` this is its
    branching. The branch shares the tokens before such a token, and samples that token anew.

    Args:
        step_ids_t: [T] step of each token, -1 where masked.

    Returns:
        [T] bool.

    Raises:
        ValueError: the array cannot be step ids.
        AssertionError: the input is not of rank 1.

    Example:
        >>> import jax.numpy as jnp
        >>> print(arpo_candidates(jnp.array([-1, 0, 0, -1, 1, 1])).astype(int))
        [0 0 0 0 1 0]
    """
    check_row_step_ids(step_ids_t)
    starts_t = step_starts(step_ids_t)
    return starts_t & (jnp.cumsum(starts_t, dtype=jnp.int32) > 1)
