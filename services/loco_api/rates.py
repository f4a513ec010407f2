"""How often a key or an address may ask: token buckets in this process's memory."""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

#: Keys or addresses counted at once; the one not seen for longest is forgotten, and so let in.
MOST = 10_000
#: An IPv6 network of this length is one address: whoever has one has them all.
_IPV6_PREFIX = 64


class Rate:
    """So many a minute, each by itself: all at once, or evenly. For one thread."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when

    def take(self, who: str) -> int:
        """Takes one; answers 0, or the seconds until there is one again."""
        now = self._clock()
        tokens, then = self._buckets.get(who, (float(self.per_minute), now))
        tokens = min(self.per_minute, tokens + (now - then) * self.per_minute / 60)
        wait = 0 if tokens >= 1 else math.ceil((1 - tokens) * 60 / self.per_minute)
        self._buckets[who] = (tokens if wait else tokens - 1, now)
        self._buckets.move_to_end(who)
        if len(self._buckets) > MOST:
            self._buckets.popitem(last=False)
        return wait

    def __len__(self) -> int:
        return len(self._buckets)


def network_of(address: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 an IPv6 one is of."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False))
    return str(parsed)
