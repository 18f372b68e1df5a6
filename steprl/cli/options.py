"""What several commands share: their exit codes, and the settings they run with."""

import argparse

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130


def config_of(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from steprl.config import load_config

    return load_config(options.config, options.overrides)


def config_of_run(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from steprl.config import load_config

    file = options.run / "config.resolved.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{options.run} is not a run: it has no config.resolved.yaml")
    return load_config(file, options.overrides)


def session_of(config):  # type: ignore[no-untyped-def]
    """The session of some settings; what they ask for and no machine has is an error of theirs."""
    from steprl.session import setup

    try:
        return setup(config)
    except (TypeError, OverflowError, MemoryError) as error:
        text = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"the settings cannot be set up: {text}") from error
