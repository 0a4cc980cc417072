"""Commands: what `tversky-seg train` and the others do, step by step."""
