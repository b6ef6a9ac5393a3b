"""What predicts the gains, before any RL: python jobs/signals.py --config jobs/lab_matrix.yaml [key=value …]"""

from pastry.cli import job

job("signals")
