"""Attacks on an unlearned model: does what it forgot come back?

`options` says which attacks there are, `attack` what each is given and gives back, `summary` what follows from the
outcomes of the model before unlearning, of the unlearned one and of models that never knew. One attack a file.
"""
