"""The check of a dataset before a training: every file, the plan, the page."""
