"""Contracts, ledger, runner, client and command line of locollm."""
