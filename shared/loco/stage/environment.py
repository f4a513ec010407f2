"""What a child process gets to know of the environment: a list of names, never all there is.

A stage reads files that others wrote and downloads what others uploaded. It needs no address of Redis, no
API key, and a hub's token only where it fetches from a hub. LOCO_PASS_ENV=A,B lets more names through.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from loco.contracts.specs import ExportSpec, TrainSpec
from loco.recipes.data_files import named_data_sets

#: The token of the model hub and the file that holds it, by the names its client reads.
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")

_NAMES = frozenset(
    (
        "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMP", "TEMP",
        "XDG_CACHE_HOME", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM",
        "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONFAULTHANDLER",
        # how the machine reaches a network: a hub, and an Ollama that is not on this machine
        "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
        "http_proxy", "https_proxy", "all_proxy", "no_proxy",
        "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
        # Triton compiles a launcher for each kernel
        "CC", "CXX", "CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH",
        # not to use a token is no secret, whatever its name
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    )
)  # fmt: skip
_PREFIXES = (
    "LC_", "CUDA_", "NVIDIA_", "NCCL_", "HF_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_",
    "TRITON_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "UNSLOTH_", "GGML_",
)  # fmt: skip
#: Not by a prefix: what is called so may be a secret.
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(?:\A|_)KEY")
#: What services read of their own: settings, and where Ollama is.
_SERVICE = ("LOCO_", "OLLAMA_")


def child_environment(
    environment: Mapping[str, str] = os.environ,
    *,
    passed: Iterable[str] = (),
    tokens: bool = False,
) -> dict[str, str]:
    """The variables of a child process; it and its own children import nothing from the current folder.

    Args:
        environment: what there is.
        passed: more names to let through (LOCO_PASS_ENV).
        tokens: whether the child fetches from a hub, and gets its token.
    """
    allowed = {*_NAMES, *passed, *(TOKENS if tokens else ())}
    chosen = {
        name: value
        for name, value in environment.items()
        if name in allowed or (name.startswith(_PREFIXES) and not _SECRET.search(name))
    }
    if path := _absolute(environment.get("PYTHONPATH", "")):
        chosen["PYTHONPATH"] = path
    return {**chosen, "PYTHONSAFEPATH": "1"}


def service_environment(
    environment: Mapping[str, str] = os.environ, *, passed: Iterable[str] = ()
) -> dict[str, str]:
    """The variables of a service that `loco up` starts: a child's, with tokens, LOCO_* and OLLAMA_*."""
    own = (name for name in environment if name.startswith(_SERVICE))
    return child_environment(environment, passed=(*own, *passed), tokens=True)


def fetches(spec: Any) -> bool:
    """Whether a stage with this spec fetches from a hub: rows, problems or weights."""
    if isinstance(spec, TrainSpec | ExportSpec):
        return spec.base_model.kind == "hub"
    return bool(named_data_sets(spec))


def _absolute(path: str) -> str:
    """A PYTHONPATH without the parts that mean the current folder."""
    return os.pathsep.join(part for part in path.split(os.pathsep) if os.path.isabs(part))
