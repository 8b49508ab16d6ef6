"""The recipe: its keys and types, how text becomes one, and the recipes and launch configs that are shipped."""
