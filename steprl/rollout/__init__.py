"""The loop of agent and environment, on the device and on the host, and its records."""

from steprl.rollout.anchors import with_anchors
from steprl.rollout.device import demonstrations, rollout
from steprl.rollout.device_player import device_player
from steprl.rollout.host import HostPlayer
from steprl.rollout.player import make_player
from steprl.rollout.records import collate, pack, trajectories
from steprl.rollout.rollouts import BranchPoint, Rollouts, Usage
from steprl.rollout.scripted import scripted
from steprl.rollout.statistics import attempts, summary
from steprl.rollout.text_player import Player, text_player
from steprl.rollout.trajectory_file import (
    Line,
    StepCredit,
    read_rows,
    read_trajectories,
    write_trajectories,
)

__all__ = [
    "BranchPoint",
    "HostPlayer",
    "Line",
    "Player",
    "Rollouts",
    "StepCredit",
    "Usage",
    "attempts",
    "collate",
    "demonstrations",
    "device_player",
    "make_player",
    "pack",
    "read_rows",
    "read_trajectories",
    "rollout",
    "scripted",
    "summary",
    "text_player",
    "trajectories",
    "with_anchors",
    "write_trajectories",
]
