"""What a page of the documentation gives to be copied: files, lines of Python, commands."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name that its first line gives it, as a comment."""
        named = re.match(r"# (\w+\.(?:py|yaml))\n", self.text)
        return named and named[1]

    @property
    def commands(self) -> list[list[str]]:
        """The command lines in it, without comments."""
        if self.language:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        return [shlex.split(line, comments=True) for line in lines if line.strip()]


def blocks(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    return [Block(*match.groups()) for match in _BLOCK.finditer(PAGES[page])]


def steprl_commands(page: str) -> list[list[str]]:
    """All complete `steprl` commands of a page, in blocks and in the text."""
    found = [words for block in blocks(page) for words in block.commands]
    prose = _BLOCK.sub("", PAGES[page])
    found += [shlex.split(inline) for inline in re.findall(r"`(steprl [^`\n]+)`", prose)]
    return [words[1:] for words in found if words[0] == "steprl" and len(words) > 1]


def write_files(page: str, folder: Path) -> list[str]:
    """Writes the files of a page, and says which."""
    names = []
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")
            names.append(block.file)
    return names
