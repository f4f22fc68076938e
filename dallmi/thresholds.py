"""To be deleted: both functions live in `dallmi.metrics`."""

from dallmi.metrics import expected_f1_thresholds as expected_f1_thresholds
from dallmi.metrics import pu_thresholds as pu_thresholds
