"""Serving: Ollama, and how its `latest` names follow the ledger."""
