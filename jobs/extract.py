"""The extract stages of a run and what they depend on: python jobs/extract.py --config jobs/quickstart.yaml [key=value …]"""

from pastry.cli import job

job("extract")
