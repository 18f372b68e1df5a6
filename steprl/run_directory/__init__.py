"""Where a run lives: `<output_dir>/<experiment_name>/`, never overwritten by accident, used by one
process at a time."""

from steprl.run_directory.errors import RunDirectoryError
from steprl.run_directory.lock import locked
from steprl.run_directory.names import SETTINGS, is_run, run_path
from steprl.run_directory.opening import open_run
from steprl.run_directory.settings import record_settings, saved_settings

__all__ = [
    "SETTINGS",
    "RunDirectoryError",
    "is_run",
    "locked",
    "open_run",
    "record_settings",
    "run_path",
    "saved_settings",
]
