"""Whether an answer is right, and whether one model is better than another: pure functions."""
