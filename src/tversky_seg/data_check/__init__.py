"""The check of a dataset before a training: every file, the costs, a plan."""

from tversky_seg.data_check.check import DatasetCheck, check_dataset, survey_dataset
from tversky_seg.data_check.cohort import check_training
from tversky_seg.data_check.training import Training

__all__ = ["DatasetCheck", "Training", "check_dataset", "check_training", "survey_dataset"]
