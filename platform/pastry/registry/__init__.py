"""MLflow: runs, registered skill vectors and recipes, `models:/…` URIs."""
