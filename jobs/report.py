"""The report stages of a run and what they depend on: python jobs/report.py --config jobs/quickstart.yaml [key=value …]"""

from pastry.cli import job

job("report")
