"""`expunge bench`: what things cost, always as a ratio to something measured in the same process.

`shapes` the models' sizes; `turns` the clock and the page; `apart` a process for each peak of memory; `picture` the
pictures. `training` what a step costs beside fine-tuning and beside `naive`, the usual way to write the losses;
`growth` how that grows with what; `decode` what a token of the logit difference costs beside the base model's;
`evaluation` what measuring a model costs beside the usual way to do that.
"""
