"""The sft stages of a run and what they depend on: python jobs/sft.py --config jobs/quickstart.yaml [key=value …]"""

from pastry.cli import job

job("sft")
