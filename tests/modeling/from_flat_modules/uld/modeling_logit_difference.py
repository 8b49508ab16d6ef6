from expunge.difference import LogitDifferenceConfig, LogitDifferenceForCausalLM  # noqa: F401
