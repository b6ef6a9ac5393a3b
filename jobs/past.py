"""A whole PaST run: python jobs/past.py --config jobs/quickstart.yaml [key=value …]"""

from pastry.cli import job

job(None)
