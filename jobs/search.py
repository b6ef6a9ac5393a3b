"""The search stages of a run and what they depend on: python jobs/search.py --config jobs/quickstart.yaml [key=value …]"""

from pastry.cli import job

job("search")
