"""The rl stages of a run and what they depend on: python jobs/rl.py --config jobs/quickstart.yaml [key=value …]"""

from pastry.cli import job

job("rl")
