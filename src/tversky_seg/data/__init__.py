"""Data: cases and manifests, NIfTI files, preprocessing, patches, the synthetic cohort, public datasets."""
