"""Times as people say them: `--after 22:00`, and how long a job waits yet."""

import re
from datetime import datetime, time, timedelta

from loco.contracts.errors import InvalidRequest
from loco.contracts.figures import duration
from loco.contracts.jobs import Job, Waiting

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def absolute(text: str, now: datetime | None = None) -> datetime:
    """A time of this machine, with its offset.

    Args:
        text: `22:00` (the next one), `2026-12-24 06:30`, an ISO time with or without an offset, or
            `90m`, `2h`, `3d` from now.
        now: the present, with an offset; none: the clock's.

    Raises:
        InvalidRequest: it says no time.
    """
    now = now or datetime.now().astimezone()
    if found := re.fullmatch(r"\+?(\d{1,4})([mhd])", text):
        return now + timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}", text):
            at = time.fromisoformat(text.zfill(5))
            today = datetime.combine(now.date(), at)
            # without an offset until the end: tomorrow may have another one
            later = today if today.astimezone() > now else today + timedelta(days=1)
            return later.astimezone()
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"--after {text!r:.100}: not a time.",
            param="--after",
            hint="Write a time (22:00, 2026-12-24 06:30) or how long to wait (90m, 2h, 3d).",
        ) from error


def moment(when: datetime, now: datetime | None = None) -> str:
    """A time as this machine's clock shows it; with its date unless that is today."""
    local = when.astimezone()
    today = (now or datetime.now().astimezone()).date()
    return local.strftime("%H:%M" if local.date() == today else "%Y-%m-%d %H:%M")


def in_line(job: Job, waiting: Waiting) -> str:
    """Where a job stands in line, in words."""
    if waiting.position is None and job.not_before is not None:
        words = f"waits until {moment(job.not_before)}"
    elif waiting.position is None:
        words = "waits before the next try"
    else:
        words = f"number {waiting.position} in line"
        if waiting.starts_in_seconds:
            words += f", starts in about {duration(waiting.starts_in_seconds)}"
    if waiting.ends_in_seconds:
        words += f", ends in about {duration(waiting.ends_in_seconds)}"
    return words
