"""The process: a supervisor that serves sessions, and the command line around it."""

from .lag import Quantiles
from .statistics import GroupStatistics, LaneStatistics, Statistics
from .supervisor import AbandonedBodies, DrainReport, Supervisor

__all__ = [
    "AbandonedBodies",
    "DrainReport",
    "GroupStatistics",
    "LaneStatistics",
    "Quantiles",
    "Statistics",
    "Supervisor",
]

for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
