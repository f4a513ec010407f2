"""Starts the model host: the stand-in for Ollama on a machine that has none.

python -m loco_modelhost --host 127.0.0.1 --port 11434 --data-dir .loco/modelhost
"""

import argparse
import os
from pathlib import Path


def main() -> None:
    """Serves until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m loco_modelhost", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=11434)
    parser.add_argument("--data-dir", type=Path, required=True, help="where models are stored")
    parser.add_argument("--most-loaded", type=int, default=3, help="models kept in memory")
    parser.add_argument("--most-waiting", type=int, default=512, help="requests that may wait")
    parser.add_argument("--parallel", type=int, default=1, help="requests a model answers at once")
    arguments = parser.parse_args()
    # Threads that spin while they wait for each other cost most of the speed as soon as something else
    # runs on the machine (measured: docs/modelhost.md). Read when llama.cpp is loaded, so set before.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    import uvicorn  # noqa: PLC0415

    from loco_modelhost.app import build  # noqa: PLC0415

    app = build(
        arguments.data_dir.absolute(),
        host=arguments.host,
        most_loaded=arguments.most_loaded,
        most_waiting=arguments.most_waiting,
        parallel=arguments.parallel,
    )
    uvicorn.run(
        app,
        host=arguments.host,
        port=arguments.port,
        log_level="info",
        access_log=False,
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
