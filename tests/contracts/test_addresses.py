"""Loopback addresses, by number, by name and in URLs."""

from loco.contracts.addresses import hostname, is_loopback


def test_addresses_of_servers():
    here = ("http://127.0.0.2:1", "http://localhost", "http://[::1]:8321")
    assert all(is_loopback(hostname(url)) for url in here)
    elsewhere = ("http://10.0.0.1", "http://localhost.evil", "http://0.0.0.0")
    assert not any(is_loopback(hostname(url)) for url in elsewhere)
    assert not is_loopback(hostname("http://[::1"))
