"""The pretrain stages of a run and what they depend on: python jobs/pretrain.py --config jobs/quickstart.yaml [key=value …]"""

from pastry.cli import job

job("pretrain")
