"""Decision thresholds and golden samples, fitted on the file that ships; needs no training framework.

``snl_calibration.calibrate`` fits whole decisions and ``snl_calibration.synthetic_defects`` draws defects; both need OpenCV and are imported by name.
"""

from .golden import choose_golden
from .outliers import OutlierReport, find_outliers
from .thresholds import ThresholdFit, fit_threshold, required_sample_size

__all__ = ["OutlierReport", "ThresholdFit", "choose_golden", "find_outliers", "fit_threshold", "required_sample_size"]
