"""Export: a trained network, and predictions, in the formats of other programs."""
