"""Skill vectors as low-rank factors: out of LoRA adapters, and into them."""
