"""The names that a checkpoint of a logit difference imports: they stay here, wherever the code is."""

from expunge.modeling.difference import LogitDifferenceConfig, LogitDifferenceForCausalLM

__all__ = ["LogitDifferenceConfig", "LogitDifferenceForCausalLM"]
