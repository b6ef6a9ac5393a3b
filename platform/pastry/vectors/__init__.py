"""Skill vectors as numbers on disk: read, subtract, add, compare, store."""
