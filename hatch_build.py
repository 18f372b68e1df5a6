"""What a package has beside its modules: a long description, and the configurations.

The description is README.md, as a page that stands outside the repository.

A package index shows the README without the files beside it, so links and pictures with a relative path
lead nowhere there. Where the addresses of the repository's files are known, in pyproject.toml under
`[tool.hatch.metadata.hooks.custom]`, the paths are completed; where not, pictures are left out with the
caption beneath them, and links become plain text.

The configurations of the folder `configs` are in a wheel as `steprl/configs`, where `steprl train NAME`
finds them. An editable installation reads them where they are, so it gets no copies.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = r"(?!https?://|mailto:)(?P<path>[^()\s]+)"
# Not in code blocks; they are matched first and kept.
_CODE = r"(?P<code>^```.*?^```$)"
# A line in italics right after a picture is its caption.
_IMAGE = re.compile(
    rf"{_CODE}|!\[(?P<text>[^\]]*)\]\({_RELATIVE}\)(?P<caption>\n\n\*[^*]+\*$)?\n*", re.M | re.S
)
_LINK = re.compile(rf"{_CODE}|(?<!!)\[(?P<text>[^\]]*)\]\({_RELATIVE}\)", re.M | re.S)
_COMMENT = re.compile(r"<!--.*?-->\n?", re.S)


def long_description(readme: str, pages: str = "", images: str = "") -> str:
    """The README without relative paths.

    Args:
        readme: Markdown.
        pages: address of the folder of the repository, for links; without it they become text.
        images: address of the same folder for the bytes of a picture; without it they are left out.
    """

    def image(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        if not images:
            return ""
        target = f"]({match['path']})"
        return match[0].replace(target, f"]({images.rstrip('/')}/{match['path']})", 1)

    def link(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        if match["path"].startswith("#") or not pages:
            return match["text"]
        return f"[{match['text']}]({pages.rstrip('/')}/{match['path']})"

    return _LINK.sub(link, _IMAGE.sub(image, _COMMENT.sub("", readme)))


class LongDescription(MetadataHookInterface):
    """Fills `readme`, which pyproject.toml declares as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        addresses = {name: self.config.get(name, "") for name in ("pages", "images")}
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": long_description(readme, **addresses),
        }


class Configurations(BuildHookInterface):
    """Puts `configs` into wheels."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"][str(Path(self.root) / "configs")] = "steprl/configs"
