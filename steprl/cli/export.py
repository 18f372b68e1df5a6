"""`steprl export`: weights for other programs."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from steprl.cli.options import add_step


def add_commands(command: Any) -> None:
    """Adds the command to the parser."""
    sub = command(
        "export", _export, "Write weights that AutoModelForCausalLM.from_pretrained loads."
    )
    sub.add_argument("source", metavar="RUN|MODEL", help="directory of a run, or as model.path")
    sub.add_argument("directory", metavar="FOLDER", type=Path, help="folder to write, new or empty")
    add_step(sub)
    sub.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights in the file"
    )
    sub.add_argument(
        "--adapter", action="store_true", help="the adapters alone, as PEFT writes them"
    )


def _export(options: argparse.Namespace, console: Console) -> int:
    from steprl.models import save_adapter, save_pretrained
    from steprl.session import open_policy

    with console.status("Reading ..."):
        opened = open_policy(options.source, options.step, merge=not options.adapter)
    if options.adapter:
        if opened.config is None or "lora" not in opened.params:
            raise ValueError(f"--adapter: {options.source} has no adapters (model.lora.rank=0)")
        settings = opened.config.model
        save_adapter(
            options.directory, opened.params, settings.lora.alpha, base_model=settings.path
        )
        loader = "PeftModel.from_pretrained"
    else:
        save_pretrained(
            options.directory,
            opened.model,
            opened.params,
            tokenizer=opened.tokenizer,
            dtype=options.dtype,
        )
        loader = "AutoModelForCausalLM.from_pretrained"
    size = sum(file.stat().st_size for file in options.directory.rglob("*") if file.is_file())
    console.print(
        f"Written to {options.directory}, {size / 1e6:.1f} MB; load it with {loader}", markup=False
    )
    return 0
