"""The audit of credit: as states fork, what a step was truly worth can be measured, and compared."""

from steprl.audit.comparison import (
    CONTINUATIONS,
    ENUMERATED,
    LINEAR,
    RANK,
    Audit,
    Reliability,
    Score,
    as_record,
    judged,
    run_audit,
)
from steprl.audit.enumeration import Bounds, enumerate_steps, why_not
from steprl.audit.estimates import TARGETS
from steprl.audit.truth import Truth, continue_all

__all__ = [
    "CONTINUATIONS",
    "ENUMERATED",
    "LINEAR",
    "RANK",
    "TARGETS",
    "Audit",
    "Bounds",
    "Reliability",
    "Score",
    "Truth",
    "as_record",
    "continue_all",
    "enumerate_steps",
    "judged",
    "run_audit",
    "why_not",
]
