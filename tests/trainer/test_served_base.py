"""A kept base that an export takes counts as used, so that nobody deletes it meanwhile."""

import os
import time
from pathlib import Path

from loco_trainer.gguf import served_base


def test_a_base_that_is_taken_is_young_again(tmp_path: Path) -> None:
    place = tmp_path / "served" / "smol.1a.Q4_K_M.gguf"
    with served_base.writing(place) as part:
        part.write_bytes(b"GGUF")
        served_base.keep(part, place, 1)
    long_ago = time.time() - 10 * 86_400
    os.utime(place, (long_ago, long_ago))
    assert served_base.kept(place) is not None
    assert time.time() - place.stat().st_mtime < 3600
    place.write_bytes(b"cut")
    os.utime(place, (long_ago, long_ago))
    assert served_base.kept(place) is None
    assert time.time() - place.stat().st_mtime > 3600, "what was cut is of no use"
