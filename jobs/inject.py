"""The inject stages of a run and what they depend on: python jobs/inject.py --config jobs/quickstart.yaml [key=value …]"""

from pastry.cli import job

job("inject")
