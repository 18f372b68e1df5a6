"""The loop of agent and environment, on the device and on the host, and its records."""

from steprl.rollout.anchors import with_anchors
from steprl.rollout.device import DeviceEnv, demonstrations, rollout
from steprl.rollout.host import HostPlayer, scripted
from steprl.rollout.player import Player, attempts, make_player, summary, words_of
from steprl.rollout.records import collate, pack, trajectories

__all__ = [
    "DeviceEnv",
    "HostPlayer",
    "Player",
    "attempts",
    "collate",
    "demonstrations",
    "make_player",
    "pack",
    "rollout",
    "scripted",
    "summary",
    "trajectories",
    "with_anchors",
    "words_of",
]
