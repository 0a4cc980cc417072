"""Analysis across runs: comparisons, cross-validation, sweeps."""
