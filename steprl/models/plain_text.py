"""Text that stays text: no control token comes out of it, whatever is written in it.

A tokenizer turns `<|im_end|>` into the token that ends a turn, wherever it stands. In the text of an
environment, a tool or a user it must not. Such text is *shielded* before a chat template writes it: an
invisible mark is put behind the first character of whatever could begin a control token. The template
handles it as any other character, and the encoder takes the marks out, and cuts the text where a marked
token would have begun. Text without marks is encoded as the tokenizer does it.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

# A code point that no text has, and what it means by the one behind it.
_ESCAPE = "\ufdd0"
_ITSELF, _MAY_CUT, _MUST_CUT = "\ufdd1", "\ufdd2", "\ufdd3"
_MARKED = re.compile(f"{_ESCAPE}([{_ITSELF}{_MAY_CUT}{_MUST_CUT}])")
_MANY = 1000  # pieces of a text
_BRACKETS = re.compile(r"<\S*>|\[\S*\]")


class PlainText(NamedTuple):
    """The functions of one tokenizer.

    shield(text, allowed=()) -> the text, shielded from all control tokens but those allowed
    encode(text) -> ids of a text that may hold shielded parts, without tokens at begin and end
    special: names of special tokens
    tags: names of the other control tokens, such as "<think>"
    """

    shield: Callable[..., str]
    encode: Callable[[str], list[int]]
    special: frozenset[str]
    tags: frozenset[str]


def plain_text(tokenizer: Any) -> PlainText:
    """How a tokenizer encodes text that must not become control tokens.

    Control tokens are special tokens, and added ones whose names stand in brackets, such as `<think>`
    or `[INST]`. Others, such as runs of blanks, are ordinary text.

    Args:
        tokenizer: of `transformers`.

    Note:
        A control token that is written out has other neighbours than in one piece of text: it is cut
        behind its first character. It is decoded to the text as it was; but tokenizers that put a blank
        before every piece put one there, too.
    """
    added = tokenizer.added_tokens_decoder
    special = {token.content for token in added.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    special = {name for name in special if len(name) > 1}
    tags = {token.content for token in added.values()} - special
    tags = {name for name in tags if len(name) > 1 and _BRACKETS.fullmatch(name)}
    ids = {number for number, token in added.items() if token.content in special | tags}
    id_of = {token.content: number for number, token in added.items()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # A token that is looked for in the normalised text may be hidden in another text.
    hides = getattr(backend, "normalizer", None) is not None and any(
        token.normalized and number in ids for number, token in added.items()
    )
    control = re.compile(_pattern(special | tags))
    matchers: dict[frozenset[str], tuple[re.Pattern[str], frozenset[str]]] = {}

    def matcher(allowed: frozenset[str]) -> tuple[re.Pattern[str], frozenset[str]]:
        """Finds names that are not allowed, overlapping ones too; and what one may begin with."""
        if allowed not in matchers:
            names = (special | tags) - allowed
            parts = {name[:size] for name in names for size in range(1, len(name))}
            matchers[allowed] = re.compile(f"(?={_pattern(names)})"), frozenset(parts)
        return matchers[allowed]

    def begins(text: str, allowed: frozenset[str]) -> list[int]:
        """Where a token begins that is not allowed, or may begin at the end of the text."""
        names, parts = matcher(allowed)
        longest = max(map(len, parts), default=0)
        ending = range(max(len(text) - longest, 0), len(text))
        places = {match.start() for match in names.finditer(text)}
        return sorted(places.union(at for at in ending if text[at:] in parts))

    def shield(text: str, allowed: Collection[str] = ()) -> str:
        text = text.replace(_ESCAPE, _ESCAPE + _ITSELF)
        places = [at + 1 for at in begins(text, frozenset(allowed))]
        shielded = _insert(text, places, _ESCAPE + _MAY_CUT)
        if hides and (ids - {id_of.get(name) for name in allowed}) & set(encode(shielded)):
            return _insert(text, range(1, len(text)), _ESCAPE + _MUST_CUT)
        return shielded

    def encode(text: str) -> list[int]:
        plain, cuts = text, []
        if _ESCAPE in text:
            plain, marks = _read_marks(text)
            cuts = [at for at, kind in marks if kind == _MUST_CUT or control.match(plain, at - 1)]
        if len(cuts) > _MANY:
            tokenizer.encode(plain, add_special_tokens=False)  # which may find it too long
        edges = [0, *cuts, len(plain)]
        pieces = [plain[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]
        found: list[int] = []
        for piece in pieces:
            found += tokenizer.encode(piece, add_special_tokens=False)
        return found

    return PlainText(shield, encode, frozenset(special), frozenset(tags))


def unshield(text: str) -> str:
    """The text without its marks."""
    return _read_marks(text)[0] if _ESCAPE in text else text


def shield_all(value: Any, shield: Callable[[str], str]) -> Any:
    """Every text in a value as JSON has it, keys included."""
    if isinstance(value, str):
        return shield(value)
    if isinstance(value, Mapping):
        return {shield_all(k, shield): shield_all(v, shield) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [shield_all(item, shield) for item in value]
    return value


def _pattern(names: Collection[str]) -> str:
    """A regular expression for the longest of some names, in time that does not grow with them."""
    if not names:
        return "(?!)"
    behind: dict[str, set[str]] = {}
    for name in names:
        behind.setdefault(name[:1], set()).add(name[1:])
    branches = [
        re.escape(first) + ("" if rests == {""} else _pattern(rests))
        for first, rests in sorted(behind.items())
        if first
    ]
    body = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return f"(?:{body})?" if "" in behind else body


def _insert(text: str, places: Collection[int], mark: str) -> str:
    if not places:
        return text
    edges = [0, *places, len(text)]
    return mark.join(text[begin:end] for begin, end in zip(edges, edges[1:], strict=False))


def _read_marks(text: str) -> tuple[str, list[tuple[int, str]]]:
    """The text without marks, and where they were."""
    pieces, marks, length = [], [], 0
    begin = 0
    for match in _MARKED.finditer(text):
        piece = text[begin : match.start()] + (_ESCAPE if match[1] == _ITSELF else "")
        pieces.append(piece)
        length += len(piece)
        if match[1] != _ITSELF:
            marks.append((length, match[1]))
        begin = match.end()
    return "".join([*pieces, text[begin:]]), marks
