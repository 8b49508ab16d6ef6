"""Models: loading, the forward that stops at the head, log-probabilities, and the logit difference."""
