"""Conversations as supervised data: steps with the tokens of a rollout, packed into rows.

Each reply of the assistant is a step. So the likelihood is that of what a policy would have sampled,
the reply and its stop token, behind what it would have read.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from steprl.models.chat import ChatFormat
from steprl.models.plain_text import unshield
from steprl.rollout.conversation_files import Conversation, read_conversations
from steprl.rollout.records import pack
from steprl.rollout.text_player import apart
from steprl.sharding import shard_rows
from steprl.types import Step, StepBatch, Trajectory

_OPEN_ROWS = 64  # that a context may still be put in; more fill rows hardly better


class Conversations(NamedTuple):
    """The conversations of a file as records."""

    trajectories: list[Trajectory]  # `task` is the line
    too_long: tuple[int, ...]  # lines that were left out
    prefix_breaks: int  # steps whose context the template wrote anew


def as_trajectory(conversation: Conversation, chat: ChatFormat) -> Trajectory:
    """A step for each reply, with the ids that a rollout would have.

    The messages before the first reply are read by the first step, and so on; a reply is tokenised by
    itself. Where the template rewrites what was before, as that of Qwen3 drops earlier thoughts, a step
    is `fresh` and reads the whole context as it is written now.

    Raises:
        ValueError: the template cannot write the conversation; names file and line.
    """
    steps: list[Step] = []
    so_far = ""
    for index, message in enumerate(conversation.messages):
        if message["role"] != "assistant" or message.get("weight") == 0:
            continue
        try:
            context, reply = _written(conversation, index, chat)
        except ValueError as error:
            raise ValueError(f"{conversation.place}: message {index + 1}: {error}") from error
        ids = [*chat.encode(reply), chat.stop_ids[0]]
        fresh = not context.startswith(so_far)
        new_text = context if fresh else context[len(so_far) :]
        unknown = np.zeros(len(ids), np.float32)
        steps.append(
            Step(
                observation=unshield(new_text),
                action=unshield(reply),
                observation_ids=np.asarray(chat.encode(new_text), np.int32),
                action_ids=np.asarray(ids, np.int32),
                logprobs=unknown,
                entropies=unknown,
                reward=0.0,
                terminated=False,
                truncated=False,
                stop_reason="stop_token",
                fresh=fresh,
            )
        )
        so_far = context + reply + chat.stop
    return Trajectory(conversation.line, 0, tuple(steps), success=True)


def _written(conversation: Conversation, index: int, chat: ChatFormat) -> tuple[str, str]:
    """The text before a reply, and the reply without its stop token, as `chat.write` has them."""
    messages, message = conversation.messages[:index], conversation.messages[index]
    tools = {} if conversation.tools is None else {"tools": conversation.tools}
    if not messages:
        raise ValueError("a reply to nothing; put a message before it, or give it weight 0")
    context = chat.write(messages, **tools)
    written = chat.write([*messages, message], prompt=False, **tools)
    if not written.startswith(context):
        raise ValueError("the chat template does not write this reply behind its generation prompt")
    reply, stop_text, _ = written[len(context) :].rpartition(chat.stop)
    if not stop_text:
        raise ValueError(f"the chat template does not end this reply with {chat.stop}")
    if set(chat.encode(unshield(reply))) & set(chat.stop_ids):
        raise ValueError("a stop token inside of a reply, which would have ended it")
    if "tool_calls" in message:
        silent = {name: value for name, value in message.items() if name != "tool_calls"}
        if chat.write([*messages, silent], prompt=False, **tools) == written:
            raise ValueError(
                "the chat template does not write tool_calls; write them into the content, see "
                "`steprl.tools.render_tool_call`"
            )
    return context, reply


def load_conversations(path: str | Path, chat: ChatFormat, length: int) -> Conversations:
    """The conversations of a file whose contexts have at most `length` tokens.

    Raises:
        FileNotFoundError, ValueError: as of `read_conversations` and `as_trajectory`; or no conversation
            fits, or there is none.
    """
    kept, too_long, longest = [], [], 0
    for conversation in read_conversations(path):
        trajectory = as_trajectory(conversation, chat)
        tokens = max(_size(context)[0] for context in apart(trajectory))
        longest = max(longest, tokens)
        if tokens > length:
            too_long.append(conversation.line)
        else:
            kept.append(trajectory)
    if not kept and not too_long:
        raise ValueError(f"{path}: the file holds no conversation")
    if not kept:
        raise ValueError(
            f"{path}: all {len(too_long)} conversations are longer than "
            f"rollout.context_length={length} tokens; the longest has {longest}"
        )
    breaks = sum(step.fresh for trajectory in kept for step in trajectory.steps)
    return Conversations(kept, tuple(too_long), breaks)


def conversation_demonstrations(
    path: str | Path, chat: ChatFormat, length: int, seed: int = 0, mesh: Mesh | None = None
) -> Callable[[jax.Array, np.ndarray], StepBatch]:
    """Rows of conversations for the supervised phase, each conversation once an epoch.

    Contexts that fit into a row together share it, kept apart by segment ids. Rows come in an order that
    follows from the seed and the epoch, and the epoch from the number of the row: nothing is remembered
    between two calls, so a resumed run reads what it would have read.

    Args:
        path: as in `read_conversations`. A conversation that is longer than `length` is left out, with
            a warning that names the lines; none is cut.
        chat: of the model that learns.
        length: tokens of a row.
        seed: of the order.
        mesh: where rows are placed; None leaves them on the host.

    Returns:
        `demonstrate(key, task_N) -> StepBatch`, with the row of number t modulo epochs for each t; the
        key is not used. All batches have the same shapes.

    Raises:
        FileNotFoundError, ValueError: as of `load_conversations`.
    """
    loaded = load_conversations(path, chat, length)
    if loaded.too_long:
        total = len(loaded.trajectories) + len(loaded.too_long)
        lines = ", ".join(map(str, loaded.too_long[:10]))
        warnings.warn(
            f"{path}: {len(loaded.too_long)} of {total} conversations are longer than {length} tokens "
            f"and left out (lines {lines}{', ...' if len(loaded.too_long) > 10 else ''})",
            stacklevel=2,
        )
    contexts = [context for one in loaded.trajectories for context in apart(one)]
    rows = fill_rows(contexts, length, seed)
    action_width = max(sum(_size(context)[1] for context in row) for row in rows)

    @functools.lru_cache(maxsize=4)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(len(rows))

    def demonstrate(key: jax.Array, task_N: np.ndarray) -> StepBatch:
        del key
        places = [divmod(int(task), len(rows)) for task in task_N]
        batch = pack([rows[order(epoch)[at]] for epoch, at in places], length, action_width)
        return batch if mesh is None else shard_rows(batch, mesh)

    return demonstrate


def fill_rows(
    contexts: Sequence[Trajectory], length: int, seed: int = 0
) -> list[tuple[Trajectory, ...]]:
    """Contexts in rows of at most `length` tokens: each into the first of the last rows with room.

    They are shuffled before, so that neighbours in a file do not share a row.
    """
    rows: list[list[Trajectory]] = []
    room: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(contexts)):
        size = _size(contexts[index])[0]
        start = max(0, len(rows) - _OPEN_ROWS)
        place = next((p for p in range(start, len(rows)) if room[p] >= size), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(length)
        rows[place].append(contexts[index])
        room[place] -= size
    return [tuple(row) for row in rows]


def _size(context: Trajectory) -> tuple[int, int]:
    """Tokens, and those of them that are learnt."""
    sampled = sum(len(step.action_ids) for step in context.steps)
    return sampled + sum(len(step.observation_ids) for step in context.steps), sampled
