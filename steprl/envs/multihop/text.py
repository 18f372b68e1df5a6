"""The same game played as text: the rules are those of `env.py`, words are looked up both ways."""

from typing import Any

import jax
import numpy as np

from steprl.config import MultihopConfig
from steprl.envs.multihop import language as words
from steprl.envs.multihop.env import Multihop, MultihopState
from steprl.models.tokenizer import detokenize, phrase_tokenizer


class MultihopText:
    """The value protocol of `steprl.envs.Env` around `Multihop`."""

    def __init__(self, config: MultihopConfig | None = None, heldout: bool = False):
        self.game = Multihop(config or MultihopConfig(), heldout)
        self.tokenizer = phrase_tokenizer(words.vocabulary())
        self._reset, self._step = jax.jit(self.game.reset), jax.jit(self.game.step)

    def reset(self, task: int, key: Any = None) -> tuple[MultihopState, str]:
        """State and question of a task; `key` decides which searches fail (default: by task)."""
        state, tokens = self._reset(task, jax.random.key(task) if key is None else key)
        return state, self._text(tokens)

    def step(
        self, state: MultihopState, action: str
    ) -> tuple[MultihopState, str, float, bool, bool, dict[str, Any]]:
        """Plays `search <name> <relation>` or `answer <name>`; anything else is told why not."""
        ids = self.tokenizer.encode(action)[: self.game.action_width]
        if len(ids) < self.game.action_width:
            ids.append(words.END_ID)
        padded = np.full(self.game.action_width, words.PAD_ID, np.int32)
        padded[: len(ids)] = ids
        state, seen = self._step(state, padded)
        info: dict[str, Any] = {"success": bool(seen.success), "valid": bool(seen.valid)}
        if not seen.valid:
            info["reason"] = words.REASONS[int(seen.tokens[0])]
        text = self._text(seen.tokens)
        return state, text, float(seen.reward), bool(seen.terminated), bool(seen.truncated), info

    def _text(self, tokens: jax.Array) -> str:
        ids = np.asarray(tokens)
        return detokenize(self.tokenizer, ids[ids != words.PAD_ID])
