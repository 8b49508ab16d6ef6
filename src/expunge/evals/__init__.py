"""Measuring a model: `requests` asks it once, `metrics` turns numbers into metrics, one file per benchmark joins them.

Nothing is re-exported here, so that importing the package stays free of torch.
"""
