"""The register stages of a run and what they depend on: python jobs/register.py --config jobs/quickstart.yaml [key=value …]"""

from pastry.cli import job

job("register")
