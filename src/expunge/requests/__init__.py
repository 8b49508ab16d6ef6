"""A request to be forgotten, from the letter to the evidence that somebody else can check.

`find` finds the rows about a person, `probe` asks whether a model remembers them, `handling` does what suffices and
`ledger` remembers it; `evidence` writes the folder about a run, `verification` checks it.
"""
