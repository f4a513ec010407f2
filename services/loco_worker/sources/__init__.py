"""Where training rows come from, and what a row has to be."""
