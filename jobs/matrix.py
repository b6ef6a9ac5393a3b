"""Every source into every target: python jobs/matrix.py --config jobs/lab_matrix.yaml [key=value …]"""

from pastry.cli import job

job("matrix")
