"""The laboratory: whole experiments as one compiled program, many seeds at once, with intervals."""

from steprl.carried import next_clip
from steprl.laboratory.program import (
    TRACED,
    Program,
    make_program,
    make_train,
    with_settings,
)
from steprl.laboratory.statistics import (
    Curve,
    Interval,
    area_under_curve,
    interquartile_mean,
    mean_curve,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
    value_at,
)

__all__ = [
    "TRACED",
    "Curve",
    "Interval",
    "Program",
    "area_under_curve",
    "interquartile_mean",
    "make_program",
    "make_train",
    "mean_curve",
    "next_clip",
    "performance_profile",
    "probability_of_improvement",
    "stratified_bootstrap",
    "value_at",
    "with_settings",
]
