"""The pipeline as a Prefect flow, its configuration and its commands."""
