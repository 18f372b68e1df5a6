"""From a checked request to its answer: tokens, limits, replies, usage."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

from steprl.models.generation import end_ids
from steprl.sampling import sampling_of
from steprl.serving.conversation import MessageFormat, message_format
from steprl.serving.fields import ApiError
from steprl.serving.generation import Piece, ReplyEngine, ReplySettings
from steprl.serving.prompts import PromptTooLong, bounded
from steprl.serving.protocol import Chat, Completion, Options
from steprl.serving.responses import Head, choice, new_head, usage
from steprl.serving.text import Delta, read_calls, read_text
from steprl.session import Opened

_CONTEXT = 4096  # of models that do not say


class Replies(Protocol):
    """What the server needs of a `ReplyEngine`."""

    context_length: int

    def reply(self, prompt: list[int], settings: ReplySettings) -> Generator[Piece, None, None]:
        """See `ReplyEngine.reply`."""
        ...


class Served(NamedTuple):
    """The model of a server."""

    name: str
    engine: ReplyEngine | Replies
    conversation: MessageFormat | None  # None: no chat template, so completions only
    encode: Callable[[str], list[int]]  # text of a prompt
    decode: Callable[[Any], str]  # text of a reply, without a stop token at its end
    token_text: Callable[[int], str]
    stop_ids: tuple[int, ...]
    vocab_size: int


class Work(NamedTuple):
    """A request that can be answered."""

    head: Head
    options: Options
    prompts: list[list[int]]
    limits: list[int]  # tokens of a reply to each
    tools: bool


def serve_model(opened: Opened, name: str, context_length: int | None = None) -> Served:
    """An opened model, ready for a server.

    Args:
        opened: see `steprl.session.open_policy`.
        name: what clients call it.
        context_length: tokens of prompt and reply, at most; None for what the model says, or
            else its tokenizer, or 4096.

    Raises:
        ValueError: the context is shorter than 2 tokens, or longer than the model is made for.
    """
    tokenizer: Any = opened.tokenizer
    stated_limit = opened.model.context_length or tokenizer.model_max_length
    limit = stated_limit if 1 < stated_limit < 1 << 30 else None  # a huge number says "not known"
    length = context_length or limit or _CONTEXT
    if limit and length > limit:
        raise ValueError(f"a context of {length} tokens: the model was made for {limit}")
    tokenizer = bounded(tokenizer, length)
    try:
        conversation = message_format(tokenizer)
        conversation = conversation._replace(encode=tokenizer.one_prompt(conversation.encode))
    except ValueError:
        conversation = None
    stop_ids = conversation.stop_ids if conversation else end_ids(tokenizer)

    def decode(ids: Sequence[int]) -> str:
        reply_ids = ids[:-1] if ids and ids[-1] in stop_ids else ids
        return tokenizer.decode(
            reply_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    return Served(
        name=name,
        engine=ReplyEngine(opened.policy, opened.params, length),
        conversation=conversation,
        encode=tokenizer.encode,
        decode=conversation.decode if conversation else decode,
        token_text=lambda one: tokenizer.decode([one], skip_special_tokens=False),
        stop_ids=stop_ids,
        vocab_size=opened.model.vocab_size,
    )


def check_work(served: Served, request: Chat | Completion) -> Work:
    """The tokens of a request, if the model can take them.

    Raises:
        ApiError: another model, a prompt that the chat template refuses, or one that is too long.
    """
    options, chat = request.options, isinstance(request, Chat)
    if options.model != served.name:
        text = f"The model {options.model[:200]!r} is not here; this server has {served.name!r}."
        raise ApiError(404, text, "model_not_found", "model")
    name = "messages" if chat else "prompt"
    try:
        prompts = _prompts(served, request)
    except PromptTooLong as error:
        raise ApiError(400, str(error), "context_length_exceeded", name) from error
    tools = isinstance(request, Chat) and bool(request.tools)
    limits = []
    for prompt in prompts:
        if not prompt or not all(0 <= one < served.vocab_size for one in prompt):
            raise ApiError(
                400,
                f"`{name}` has to be tokens from 0 to {served.vocab_size - 1}, at least one.",
                param=name,
            )
        room = served.engine.context_length - len(prompt)
        limit = room if options.max_tokens is None else options.max_tokens
        if room < 1 or limit > room:
            raise ApiError(
                400,
                f"This model's context has {served.engine.context_length} tokens. The prompt has "
                f"{len(prompt)}, and the reply may have {max(limit, 1)}: shorten one of them.",
                "context_length_exceeded",
                name,
            )
        limits.append(limit)
    return Work(new_head(served.name, chat), options, prompts, limits, tools)


def _prompts(served: Served, request: Chat | Completion) -> list[list[int]]:
    """The tokens of the prompts.

    Raises:
        ApiError: the chat template refuses the messages, or has no place for something of them.
        PromptTooLong: no context of the model holds them.
    """
    if isinstance(request, Completion):
        return [one if isinstance(one, list) else served.encode(one) for one in request.prompts]
    if served.conversation is None:
        raise ApiError(
            400,
            f"{served.name} has no chat template: use /v1/completions.",
            "no_chat_template",
            "messages",
        )
    context = served.engine.context_length
    if len(request.messages) > context:
        raise PromptTooLong(
            f"This model's context has {context} tokens, fewer than there are messages: send fewer."
        )
    for index, message in enumerate(request.messages):
        if "reasoning_content" in message and not served.conversation.reasoning:
            name = f"messages[{index}].reasoning_content"
            problem = "has no place in the chat template of this model: leave it out"
            raise ApiError(400, f"`{name}` {problem}.", param=name)
    try:
        return [served.conversation.encode(request.messages, request.tools)]
    except PromptTooLong:
        raise
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from error


def replies(served: Served, work: Work) -> Generator[tuple[int, Delta], None, None]:
    """All deltas of all choices, choice after choice."""
    options = work.options
    index = 0
    for prompt, limit in zip(work.prompts, work.limits, strict=True):
        for number in range(options.n):
            settings = ReplySettings(
                max_tokens=limit,
                sampling=sampling_of(options),
                stop_ids=served.stop_ids,
                seed=options.seed,
                choice=number,
                top_logprobs=options.top_logprobs,
            )
            with contextlib.closing(served.engine.reply(prompt, settings)) as pieces:
                deltas = read_text(pieces, served.decode, options.stops)
                if work.tools and served.conversation is not None:
                    form = served.conversation
                    deltas = read_calls(deltas, form.bare, form.opened)
                for delta in deltas:
                    yield index, delta
            index += 1


class Tally:
    """Tokens of one answer."""

    def __init__(self, work: Work):
        self.prompt = sum(map(len, work.prompts))
        self.completion = 0
        self.cached: dict[int, int] = {}  # of the first choice of each prompt
        self.n = work.options.n

    def add(self, index: int, delta: Delta) -> None:
        self.completion += len(delta.piece.ids)
        if index % self.n == 0:
            self.cached[index] = delta.piece.cached

    def usage(self) -> dict[str, Any]:
        return usage(self.prompt, self.completion, sum(self.cached.values()))


def whole_answer(served: Served, work: Work, found: list[tuple[int, Delta]]) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    tally, by_choice = Tally(work), {}  # type: ignore[var-annotated]
    for index, delta in found:
        tally.add(index, delta)
        by_choice.setdefault(index, []).append(delta)
    choices = [
        choice(work.head, index, deltas, work.options, served.token_text)
        for index, deltas in by_choice.items()
    ]
    return {**work.head.fields(chunk=False), "choices": choices, "usage": tally.usage()}
