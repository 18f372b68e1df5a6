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
    Estimate,
    area_under_curve,
    interquartile_mean,
    mean_curve,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)
from steprl.laboratory.values import ValueSample, make_value_audit

__all__ = [
    "TRACED",
    "Curve",
    "Estimate",
    "Program",
    "ValueSample",
    "area_under_curve",
    "interquartile_mean",
    "make_program",
    "make_train",
    "make_value_audit",
    "mean_curve",
    "next_clip",
    "performance_profile",
    "probability_of_improvement",
    "stratified_bootstrap",
    "with_settings",
]
