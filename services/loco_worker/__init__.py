"""Celery worker and programs of the CPU stages: prepare, register, eval."""
