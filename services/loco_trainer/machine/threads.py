"""How many CPUs the model libraries use, and how their idle threads wait."""

import os


def share_cpus() -> None:
    """Has idle OpenMP threads sleep instead of spin; call before torch is first imported.

    Spinning threads make a training step up to five times slower on a busy machine (measured: 40 s
    against 9 s on two cores with a load of 8), and sleeping costs little on a quiet one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def usable_cpus() -> int:
    """CPUs this process may run on (fewer than the machine's in a container or under taskset)."""
    return len(os.sched_getaffinity(0))
