"""The evaluate stages of a run and what they depend on: python jobs/evaluate.py --config jobs/quickstart.yaml [key=value …]"""

from pastry.cli import job

job("evaluate")
