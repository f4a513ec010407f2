"""Celery worker and programs of the GPU stages: train, export."""
