"""A case of a campaign, and a command of steprl that is run within this process."""

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from steprl.cli import main

# The smallest run that has everything: a model of a few thousand numbers on `multihop`.
SHAPE = (
    "model.d_model=16", "model.num_layers=1", "model.num_heads=2", "model.num_kv_heads=1",
    "model.head_dim=8", "model.d_ff=32",
)  # fmt: skip
SMALL = (
    "env.multihop.num_entities=8", "env.multihop.max_hops=2",
    "env.multihop.spare_steps=1", "rollout.batch_size=8", "rollout.n=2",
    "actor.ppo_mini_batch_size=8", "sft.steps=6", "sft.batch_size=8", "sft.warmup_steps=2",
    "eval.num_tasks=8", "trainer.test_freq=0", "trainer.save_freq=2", "trainer.max_to_keep=10",
)  # fmt: skip


class Case(NamedTuple):
    """What came of one fault.

    Attributes:
        name: what was done.
        right: the program did what it should.
        traceback: an exception came through, or a traceback was printed.
        silent: nothing was said, where something had to be.
        lost: trajectories that were lost beside the faulty ones.
        said: the end of what was printed.
    """

    name: str
    right: bool
    traceback: bool = False
    silent: bool = False
    lost: int = 0
    said: str = ""


class Answer(NamedTuple):
    """Exit code and output of a command; `raised` is the traceback of what came through."""

    code: int
    text: str
    raised: str

    @property
    def traceback(self) -> bool:
        return bool(self.raised) or "Traceback (most recent call last)" in self.text

    @property
    def end(self) -> str:
        """The last line that says something, shortened."""
        lines = [line.strip() for line in (self.raised or self.text).splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""


def steprl(arguments: Sequence[str]) -> Answer:
    """Runs `steprl ARGUMENTS` here; what has been compiled is not compiled again."""
    printed, raised, code = io.StringIO(), "", 1
    logger = logging.getLogger()
    handler = logging.StreamHandler(printed)
    logger.addHandler(handler)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                code = main(list(arguments))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        raised = traceback.format_exc()
    finally:
        logger.removeHandler(handler)
    return Answer(code, printed.getvalue(), raised)


def refused(name: str, answer: Answer, named: Sequence[str] = ()) -> Case:
    """A case in which the command has to end with an error that names what was wrong."""
    said = all(word.lower() in answer.text.lower() for word in named)
    return Case(
        name,
        right=answer.code not in (0, None) and not answer.traceback and said,
        traceback=answer.traceback,
        silent=answer.code == 0 or not answer.text.strip(),
        said=answer.end,
    )


def settings(folder: Path, *overrides: str) -> list[str]:
    """A file of settings without any, and the small run in a folder."""
    file = folder / "empty.yaml"
    file.write_text("{}\n")
    shape = () if any(word.startswith("model.path=") for word in overrides) else SHAPE
    return [str(file), *shape, *SMALL, f"trainer.output_dir={folder / 'runs'}", *overrides]
