"""Public datasets: from the official download to cases, one module each."""
