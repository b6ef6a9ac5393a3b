"""The midtrain stages of a run and what they depend on: python jobs/midtrain.py --config jobs/quickstart.yaml [key=value …]"""

from pastry.cli import job

job("midtrain")
