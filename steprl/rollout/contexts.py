"""How a policy reads a text environment: observations as tokens of a context, actions back as text.

A context is extended, or written anew each step. What was sampled is never tokenised again.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from steprl.envs import Observation
from steprl.envs.suite import Suite
from steprl.models.chat import ChatFormat, chat_format
from steprl.models.plain_text import plain_text
from steprl.models.tokenizer import detokenize, unknown_of
from steprl.models.tool_forms import tool_form
from steprl.tools import instruct_tools


class Context(NamedTuple):
    """The functions that a rollout needs of a language.

    begin(observation) -> ids of a context that begins with it, ready for an action
    extend(observation) -> ids that it adds behind an action with its stop token
    encode(action text) -> ids as a policy samples them, stop token included
    decode(action ids) -> the text that the environment is given
    measure(text) -> how many tokens it has in an observation
    tell(text) -> ids of what only the critic reads: plain text, without a control token
    """

    begin: Callable[[Observation], list[int]]
    extend: Callable[[Observation], list[int]]
    encode: Callable[[str], list[int]]
    decode: Callable[[Iterable[int]], str]
    stop_ids: tuple[int, ...]
    closing_ids: tuple[int, ...]  # put behind an action that its length cut off
    pad_id: int
    rebuild: bool  # every observation begins a context of its own
    measure: Callable[[str], int] = len
    tell: Callable[[str], list[int]] = lambda text: []


def suite_context(suite: Suite, tokenizer: Any, pretrained: bool) -> Context:
    """How a policy reads an environment.

    Args:
        suite: on the host.
        tokenizer: of the policy.
        pretrained: the policy chats; else it speaks the small language of the suite.

    Raises:
        ValueError: there is no chat template, or it asks for tool calls in a form that is not read.
    """
    rebuild = suite.context == "rebuild"
    if not pretrained:
        return plain_context(tokenizer, rebuild)
    system, tools = suite.system, suite.tools or None
    if tools and not tool_form(tokenizer):
        # A template that shows no tools; they are described instead, and how to call them.
        described = instruct_tools(map(dict, tools))
        system, tools = "\n\n".join(part for part in (system, described) if part), None
    return chat_context(tokenizer, system, tools, rebuild, suite.control_tags)


def plain_context(tokenizer: Any, rebuild: bool = False) -> Context:
    """Observations as they are: for small languages whose actions end at `eos_token_id`.

    Args:
        rebuild: every observation is the whole of what the policy sees, not what is new.
    """
    end, plain = tokenizer.eos_token_id, plain_text(tokenizer)
    frame = list(tokenizer.encode(""))  # what the tokenizer itself puts around a text
    unknown_words: set[str] = set()

    def ids_of(text: str) -> list[int]:
        shielded = plain.shield(text)
        return list(tokenizer.encode(text)) if shielded == text else frame + plain.encode(shielded)

    def read(observation: Observation) -> list[int]:
        if not isinstance(observation, str):
            raise ValueError("an observation of messages needs a tokenizer with a chat template")
        ids = ids_of(observation)
        if not unknown_words and tokenizer.unk_token_id in ids:
            unknown_words.update(unknown_of(tokenizer, observation) or [tokenizer.unk_token])
            shown = ", ".join(map(repr, sorted(unknown_words)[:10]))
            warnings.warn(
                f"an observation has words that are not in the vocabulary of the environment: {shown}"
                f"{', ...' if len(unknown_words) > 10 else ''}; the policy reads {tokenizer.unk_token} for "
                "each. Add them to the vocabulary (said once; there may be others)",
                stacklevel=2,
            )
        return ids

    def encode(action: str) -> list[int]:
        ids = ids_of(action)
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
        measure=lambda text: len(ids_of(text)),
        stop_ids=(end,),
        closing_ids=(),
        pad_id=tokenizer.pad_token_id,
        rebuild=rebuild,
        tell=read,
    )


def chat_context(
    tokenizer: Any,
    system: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    rebuild: bool = False,
    tags: Sequence[str] = (),
) -> Context:
    """Observations as messages of the user, actions as replies of the assistant.

    Args:
        tokenizer: of `transformers`, with a chat template.
        system: the system message; None leaves it to the template.
        tools: schemas that the template shows.
        rebuild: every observation is the whole of what the policy sees, not what is new.
        tags: see `Suite.control_tags`.

    Raises:
        ValueError: as of `steprl.models.chat.chat_format`.
    """
    chat: ChatFormat = chat_format(tokenizer, tools, tags=tags)
    allowed = chat.plain.tags.intersection(tags)
    first = [] if system is None else [{"role": "system", "content": system}]

    def messages(observation: Observation) -> list[Mapping[str, Any]]:
        if isinstance(observation, str):
            return [{"role": "user", "content": observation}]
        return list(observation)

    def begin(observation: Observation) -> list[int]:
        needs_system = isinstance(observation, str) or observation[0]["role"] != "system"
        return chat.begin([*(first if needs_system else []), *messages(observation)])

    def encode(action: str) -> list[int]:
        if opened := chat.opened:
            if action.startswith(opened.strip()):
                action = action.removeprefix(opened).removeprefix(opened.strip())
            else:  # it has no thought
                action = f"\n{opened.strip().replace('<', '</')}\n\n{action}"
        return [*chat.encode(chat.plain.shield(action, chat.plain.tags)), chat.stop_ids[0]]

    pad = tokenizer.pad_token_id
    return Context(
        begin=begin,
        extend=lambda observation: chat.extend(messages(observation)),
        encode=encode,
        # A thought that the prompt has begun: without its tag it would read as what is said.
        decode=lambda ids: chat.opened + chat.decode(ids),
        measure=lambda text: len(chat.encode(chat.plain.shield(text, allowed))),
        stop_ids=chat.stop_ids,
        closing_ids=chat.stop_ids[:1],
        pad_id=chat.stop_ids[0] if pad is None else pad,
        rebuild=rebuild,
        tell=lambda text: chat.encode(chat.plain.shield(text)),
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
