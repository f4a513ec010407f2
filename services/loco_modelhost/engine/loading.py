"""Loads a GGUF once, with limits, and computes one token: what `trial` starts.

python -m loco_modelhost.engine.loading FILE        exit code 0: the model host can load it, too
"""

import resource
import sys
from pathlib import Path

from loco_modelhost.engine.engine import Engine, Session, Weights
from loco_modelhost.requests.options import Options

#: Bytes beyond three times the file: Python, llama.cpp, a small context.
_MEMORY = 6 << 30
#: Tokens of context.
_CONTEXT = 256


def main() -> int:
    """Tries the file of the command line."""
    path = Path(sys.argv[1])
    limit = 3 * path.stat().st_size + _MEMORY
    # written memory: the file is mapped, and a GPU's driver reserves addresses by the terabyte
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    engine = Engine(Weights(path, trusted=True, on_gpu=False), _CONTEXT, threads=1)
    tokens = engine.tokenize("One, two")[: _CONTEXT // 2]
    session = Session(tokens=tokens or [0], options=Options(num_predict=1), context_length=_CONTEXT)
    for _ in engine.pieces(session):
        pass
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
