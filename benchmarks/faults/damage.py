"""Each file of the newest checkpoint is damaged in each way; the run that goes on comes to the same."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.cases import Case, settings, steprl
from faults.same import differences

LAST = 6  # iterations, with a checkpoint every other one


def _truncated(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def _flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    if data:
        data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def _emptied(file: Path) -> None:
    file.write_bytes(b"")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": _truncated,
    "one bit flipped": _flipped,
    "empty": _emptied,
    "missing": Path.unlink,
}


def damage(folder: Path) -> Iterator[Case]:
    """A finished run, whose copies are damaged and continued."""
    words = settings(
        folder, "trainer.experiment_name=whole", f"trainer.total_training_steps={LAST}"
    )
    answer = steprl(["train", *words])
    if answer.code != 0:
        raise RuntimeError(f"the run without damage failed: {answer.end}")
    whole = folder / "runs" / "whole"
    step = whole / "checkpoints" / str(LAST)
    names = sorted(str(p.relative_to(step)) for p in step.rglob("*") if p.is_file())
    for name in names:
        for kind, act in DAMAGE.items():
            if kind == "truncated" and (step / name).stat().st_size < 2:
                continue  # the same as empty
            yield _continued(folder, f"{name}: {kind}", lambda copy, n=name, a=act: a(copy / n))  # type: ignore[misc]
    for part in ("state", "meta"):
        yield _continued(
            folder, f"{part}: folder missing", lambda copy, p=part: shutil.rmtree(copy / p)
        )  # type: ignore[misc]
    yield _continued(folder, "the step is an empty folder", _hollow)


def _hollow(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def _continued(folder: Path, name: str, act: Callable[[Path], None]) -> Case:
    whole, run = folder / "runs" / "whole", folder / "runs" / "copy"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    before = _bytes(run / "checkpoints" / str(LAST))
    act(run / "checkpoints" / str(LAST))
    if _bytes(run / "checkpoints" / str(LAST)) == before:
        raise RuntimeError(f"{name}: nothing was damaged")
    words = settings(folder, "trainer.experiment_name=copy", f"trainer.total_training_steps={LAST}")
    answer = steprl(["train", *words, "--resume", "auto"])
    other = differences(whole, run) if answer.code == 0 and not answer.traceback else ["it ended"]
    # A file that nothing is read from may be damaged: then the newest step is as good as before.
    older = str(LAST - 2) in answer.text and "checkpoints" in answer.text
    return Case(
        f"{name} ({'the step before is used' if older else 'the step is whole'})",
        right=answer.code == 0 and not other,
        traceback=answer.traceback,
        silent=bool(other) and not older,
        said="; ".join(other) or answer.end,
    )


def _bytes(step: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(step)): p.read_bytes() if p.is_file() else b"" for p in step.rglob("*")
    }
