"""Accepts a job and rings the worker: Celery messages are hints, the ledger decides."""
