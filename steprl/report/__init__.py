"""What a run looks like: pictures of its curves and its credit, and the page that shows all of it."""

from steprl.report.credit import plot_credit
from steprl.report.curves import plot_learning_curves
from steprl.report.write import write_report

__all__ = ["plot_credit", "plot_learning_curves", "write_report"]
