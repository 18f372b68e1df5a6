"""How a policy reads a text environment: observations as tokens of a context, actions back as text.

A context is extended, or written anew each step. What was sampled is never tokenised again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from steprl.envs import Observation
from steprl.envs.suite import Suite
from steprl.models.chat import ChatFormat, chat_format
from steprl.models.tokenizer import detokenize
from steprl.tools import describe_tools


class Context(NamedTuple):
    """The functions that a rollout needs of a language.

    begin(observation) -> ids of a context that begins with it, ready for an action
    extend(observation) -> ids that it adds behind an action with its stop token
    encode(action text) -> ids as a policy samples them, stop token included
    decode(action ids) -> the text that the environment is given
    """

    begin: Callable[[Observation], list[int]]
    extend: Callable[[Observation], list[int]]
    encode: Callable[[str], list[int]]
    decode: Callable[[Iterable[int]], str]
    stop_ids: tuple[int, ...]
    closing_ids: tuple[int, ...]  # put behind an action that its length cut off
    pad_id: int
    rebuild: bool  # every observation begins a context of its own


def suite_context(suite: Suite, tokenizer: Any, pretrained: bool) -> Context:
    """How a policy reads an environment.

    Args:
        suite: on the host.
        tokenizer: of the policy.
        pretrained: the policy chats; else it speaks the small language of the suite.
    """
    rebuild = suite.context == "rebuild"
    if not pretrained:
        return plain_context(tokenizer, rebuild)
    try:
        return chat_context(tokenizer, suite.system, suite.tools, rebuild)
    except ValueError:
        if not suite.tools:
            raise
    # A template that shows no tools; they are described instead.
    described = "\n\n".join(
        part for part in (suite.system, describe_tools(map(dict, suite.tools))) if part
    )
    return chat_context(tokenizer, described or None, None, rebuild)


def plain_context(tokenizer: Any, rebuild: bool = False) -> Context:
    """Observations as they are: for small languages whose actions end at `eos_token_id`.

    Args:
        rebuild: every observation is the whole of what the policy sees, not what is new.
    """
    end = tokenizer.eos_token_id

    def read(observation: Observation) -> list[int]:
        if not isinstance(observation, str):
            raise ValueError("an observation of messages needs a tokenizer with a chat template")
        return list(tokenizer.encode(observation))

    def encode(action: str) -> list[int]:
        ids = list(tokenizer.encode(action))
        if tokenizer.unk_token_id in ids:
            raise ValueError(
                f"the action {action!r} has words that are not in the vocabulary of the environment"
            )
        return [*ids, end]

    return Context(
        begin=read,
        extend=read,
        encode=encode,
        decode=lambda ids: detokenize(tokenizer, ids),
        stop_ids=(end,),
        closing_ids=(),
        pad_id=tokenizer.pad_token_id,
        rebuild=rebuild,
    )


def chat_context(
    tokenizer: Any,
    system: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    rebuild: bool = False,
) -> Context:
    """Observations as messages of the user, actions as replies of the assistant.

    Args:
        tokenizer: of `transformers`, with a chat template.
        system: the system message; None leaves it to the template.
        tools: schemas that the template shows.
        rebuild: every observation is the whole of what the policy sees, not what is new.

    Raises:
        ValueError: as of `steprl.models.chat.chat_format`.
    """
    chat: ChatFormat = chat_format(tokenizer, tools)
    first = [] if system is None else [{"role": "system", "content": system}]

    def messages(observation: Observation) -> list[Mapping[str, Any]]:
        if isinstance(observation, str):
            return [{"role": "user", "content": observation}]
        return list(observation)

    def begin(observation: Observation) -> list[int]:
        needs_system = isinstance(observation, str) or observation[0]["role"] != "system"
        return chat.begin([*(first if needs_system else []), *messages(observation)])

    pad = tokenizer.pad_token_id
    return Context(
        begin=begin,
        extend=lambda observation: chat.extend(messages(observation)),
        encode=lambda action: [*chat.encode(action), chat.stop_ids[0]],
        decode=chat.decode,
        stop_ids=chat.stop_ids,
        closing_ids=chat.stop_ids[:1],
        pad_id=chat.stop_ids[0] if pad is None else pad,
        rebuild=rebuild,
    )


def next_context(
    context: Context, so_far: Sequence[int], observation: Observation
) -> tuple[list[int], bool]:
    """The context of the next step, and whether it was written anew (a prefix break).

    Args:
        so_far: the tokens of the last step's context and its action, exactly as sampled.
        observation: what the environment answered.
    """
    if not context.rebuild and isinstance(observation, str):
        end = () if so_far[-1] in context.stop_ids else context.closing_ids
        return [*so_far, *end, *context.extend(observation)], False
    ids = context.begin(observation)
    return ids, common_prefix(so_far, ids) < len(so_far)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two contexts share from the beginning."""
    size = min(len(first), len(second))
    same = np.asarray(first[:size]) == np.asarray(second[:size])
    return size if same.all() else int(np.argmin(same))


def as_text(observation: Observation) -> str:
    """An observation as plain text, for records and transcripts."""
    if isinstance(observation, str):
        return observation
    return "\n\n".join(
        f"{message['role']}: {message.get('content') or ''}" for message in observation
    )
