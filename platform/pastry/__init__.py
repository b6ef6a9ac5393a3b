"""Pastry: Parametric Skill Transfer on Ray."""
