"""How updates lie in weight space, and to each other."""
