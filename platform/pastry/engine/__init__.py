"""A model in memory that generates text, with skills attached at a λ that can change in place."""
