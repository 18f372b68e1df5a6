"""Games of TextWorld's challenges, made when they are first asked for and kept in a folder.

The same split and number are the same game, in the same version of TextWorld.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import random
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

# What makes a small game, where the challenge has no default or one that is no task.
DEFAULTS: dict[str, dict[str, Any]] = {
    "tw-coin_collector": {"level": 5},
    "tw-treasure_hunter": {"level": 5},
    "tw-simple": {"rewards": "dense", "goal": "brief"},
    "tw-cooking": {"recipe": 1, "take": 1, "open": True, "cook": True},
}
# What a challenge itself knows of splits: for cooking, foods and preparations of their own.
SPLITS: dict[str, dict[str, dict[str, Any]]] = {
    "tw-simple": {"train": {"test": False}, "eval": {"test": True}},
    "tw-cooking": {"train": {"split": "train"}, "eval": {"split": "valid"}},
}
COMPILE_SECONDS = 120
_MAKING = threading.Lock()  # TextWorld's generator has global state


@dataclass(frozen=True)
class Games:
    """The games of a split. Game i of any two splits are drawn from different seeds.

    Attributes:
        split: any name; "train" and "eval" choose what `SPLITS` says.
        challenge: a name of `textworld.challenges.CHALLENGES`, such as "tw-cooking".
        settings: those of the challenge, as of `tw-make`, over `DEFAULTS`.
        count: task i is game `i % count`.
        folder: where the games are kept, some 0.5 MB each.

    Raises:
        ImportError: TextWorld is not installed.
        ValueError: a setting names something that does not exist.
    """

    split: str
    challenge: str
    settings: tuple[tuple[str, Any], ...]
    count: int
    folder: Path

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"games={self.count} starts at 1")
        challenges = _import().challenges.CHALLENGES
        if self.challenge not in challenges:
            raise ValueError(
                f"challenge: {self.challenge!r}; choose from {', '.join(sorted(challenges))}"
            )
        known = _known_settings(self.challenge)
        for name, _ in self.settings:
            if name not in known:
                raise ValueError(
                    f"settings.{name}: {self.challenge} has no such setting; it has "
                    f"{', '.join(sorted(known))}"
                )

    def path(self, task: int) -> Path:
        """The compiled game of a task; its description lies beside it, ending in .json.

        Raises:
            ValueError: the challenge refuses the settings.
            RuntimeError: Inform could not compile the game.
        """
        seed = self.seed(index(task) % self.count)
        settings = self._settings(seed)
        key = json.dumps([importlib.metadata.version("textworld"), settings, seed], sort_keys=True)
        digest = hashlib.blake2b(key.encode(), digest_size=10).hexdigest()
        path = self.folder / f"{self.challenge}-{digest}.z8"
        if not path.exists():
            with _MAKING:
                if not path.exists():
                    _make(self.challenge, settings, seed, path)
        return path

    def seed(self, number: int) -> int:
        return random.Random(f"textworld {self.split} {number}").randrange(2**31)

    def _settings(self, seed: int) -> dict[str, Any]:
        split_settings = SPLITS.get(self.challenge, {}).get(self.split, {})
        default = DEFAULTS.get(self.challenge, {})
        settings = _known_settings(self.challenge) | default | split_settings
        if "recipe_seed" in settings:
            settings["recipe_seed"] = seed
        return settings | dict(self.settings)


def games(
    split: str, challenge: str, settings: Mapping[str, Any], count: int, folder: str | None
) -> Games:
    """`Games` from what a configuration file holds; the folder is by default in ~/.cache/steprl."""
    games_folder = Path(folder or "~/.cache/steprl/textworld").expanduser()
    return Games(split, challenge, tuple(sorted(settings.items())), count, games_folder)


def _import() -> Any:
    try:
        import textworld
        import textworld.challenges
        import textworld.generator
    except ImportError as error:
        raise ImportError(f"{error}; TextWorld needs `pip install 'steprl[textworld]'`") from error
    return textworld


def _known_settings(challenge: str) -> dict[str, Any]:
    """The settings of a challenge with its own defaults, as its command line has them."""
    _, _, add_arguments = _import().challenges.CHALLENGES[challenge]
    actions = add_arguments(argparse.ArgumentParser(add_help=False))._actions
    return {action.dest: action.default for action in actions}


def _make(challenge: str, settings: dict[str, Any], seed: int, path: Path) -> None:
    """Make a game. Other processes may make it too: they move the same files to the same place."""
    textworld = _import()
    _, make, _ = textworld.challenges.CHALLENGES[challenge]
    textworld.g_rng.set_seed(seed)
    options = textworld.GameOptions()
    options.seeds = seed
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _our_compiler():
        try:
            game = make(dict(settings), options)
        except (ValueError, AssertionError) as error:
            raise ValueError(f"{challenge} refuses {settings}: {error}") from error
        options.path = str(Path(folder, "game.z8"))
        compiled = Path(textworld.generator.compile_game(game, options))
        os.replace(compiled.with_suffix(".json"), path.with_suffix(".json"))
        os.replace(compiled, path)  # last: where it is, all is


@contextlib.contextmanager
def _our_compiler() -> Iterator[None]:
    """TextWorld compiles with `_compile`, which does the same without a folder in the home directory.

    It compiles while a game is being made, too, to try its walkthrough.
    """
    generator = _import().generator
    original, generator.compile_inform7_game = generator.compile_inform7_game, _compile
    try:
        yield
    finally:
        generator.compile_inform7_game = original


def _compile(source: str, output: str, verbose: bool = False) -> None:
    """Inform 7 to the Z-machine, with the compilers that TextWorld ships.

    `ni` writes a folder Inform into the home directory; here that is a scratch one.
    """
    from textworld.generator.inform7.world2inform7 import I7_DEFAULT_PATH

    inform = Path(os.environ.get("INFORM_HOME", I7_DEFAULT_PATH), "share", "inform7")
    with _project(source) as project:
        compilers = inform / "Compilers"
        ni: list[str | Path] = [compilers / "ni", "--internal", inform / "Internal", "--format=.z8"]
        # Version 8, errors in Microsoft's style, no warnings, strict, in memory: as TextWorld does.
        inform6: list[str | Path] = [compilers / "inform6", "-E2wSv8F0"]
        for command in (
            [*ni, "--project", project],
            [*inform6, project / "Build" / "auto.inf", output],
        ):
            done = subprocess.run(
                command,
                env={**os.environ, "HOME": str(project)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMPILE_SECONDS,
            )
            if done.returncode:
                log = (done.stdout + done.stderr).decode(errors="replace")
                raise RuntimeError(
                    f"Inform could not compile a game; is it too big? It said: {log[-500:]}"
                )


@contextlib.contextmanager
def _project(source: str) -> Iterator[Path]:
    """The folder that Inform 7 expects."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "Source").mkdir()
        (project / "Source" / "story.ni").write_text(source)
        (project / "uuid.txt").touch()
        yield project
