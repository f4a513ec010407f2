"""Serves Hugging Face weights through the part of Ollama's API that prepare and eval use, many at once.

    python tests/benchmarks/learning/serve_hf.py --model DIR --name coder:1.5b --port 11500

One base model on one device, and adapters merged over it in turn; a line of JSON says when it is
ready. Prompts are rendered as training renders them. SIGTERM ends it.

    POST /study/adapter {"name": "math:1", "path": "FOLDER", "system": "…"}    one more model
"""

import argparse
import asyncio
import hashlib
import json
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import decode_ops
import torch
import uvicorn
from decode_model import Model, shapes
from decode_slots import WIDTH, Slots, Start
from decoder import Decoder, Job, Made, Served
from safetensors import SafetensorError
from serve_options import Refusal, start
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import AutoTokenizer

from loco.contracts.errors import LocoError
from loco_trainer.data.template import Template
from loco_trainer.merge.lora import Adapter

VERSION = "0.33.0+study"
#: Tokens that end an answer wherever a vocabulary has them.
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>")
_ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class Listed:
    """A model as /api/tags shows it."""

    served: Served
    template: Template
    digest: str
    size: int
    made_at: str

    def shown(self) -> dict[str, Any]:
        """Its entry."""
        name = self.served.name
        return {
            "name": name,
            "model": name,
            "modified_at": self.made_at,
            "size": self.size,
            "digest": self.digest,
            "details": {"format": "safetensors", "family": "study"},
        }


class Service:
    """What the routes do.

    Args:
        folder: the base model's.
        name: the base model's, with tag.
        system: the base model's system prompt; None: its template's own.
        decoder: runs the model of that folder.
        length: most tokens of prompt and answer.
    """

    def __init__(
        self, folder: Path, name: str, system: str | None, decoder: Decoder, length: int
    ) -> None:
        self.decoder, self._length, self._folder = decoder, length, folder
        tokenizer = AutoTokenizer.from_pretrained(folder)
        template = Template.of(tokenizer, system)
        digest, size = _digest_of_folder(folder, name, template)
        base = Listed(Served(name, None), template, digest, size, _now())
        self.base = base
        self._models = {name: base}

    def tags(self) -> list[dict[str, Any]]:
        """The models, the base first."""
        return [listed.shown() for listed in self._models.values()]

    def find(self, name: Any) -> Listed:
        """The model of a request."""
        if not isinstance(name, str) or not name:
            raise Refusal(400, "model is required")
        found = self._models.get(full_name(name))
        if found is None:
            raise Refusal(404, f"model '{name}' not found")
        return found

    def add(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Takes an adapter in under a name; the same name again takes its place."""
        name, path = body.get("name"), body.get("path")
        if not isinstance(name, str) or not isinstance(path, str):
            raise Refusal(400, "name and path are required")
        name, folder = full_name(name), Path(path)
        if name == self.base.served.name:
            raise Refusal(400, f"{name} is the base model")
        file = folder / _ADAPTER
        if not file.is_file():
            raise Refusal(400, f"no {_ADAPTER} in {folder}")
        try:
            adapter, changed = Adapter(folder), shapes(file)
        except (LocoError, OSError, ValueError, KeyError, SafetensorError) as error:
            raise Refusal(400, f"no adapter in {folder}: {error}") from error
        if wrong := self.decoder.model.misfit(adapter, changed):
            raise Refusal(400, f"the adapter does not fit {self.base.served.name}: {wrong}")
        template = self.base.template
        if "system" in body:
            template = Template.of(AutoTokenizer.from_pretrained(self._folder), body["system"])
        digest = hashlib.sha256(f"{self.base.digest}\n{template.system}\n".encode())
        digest.update((folder / "adapter_config.json").read_bytes())
        digest.update(file.read_bytes())
        served = Served(name, adapter)
        size = self.base.size + file.stat().st_size
        self._models[name] = Listed(served, template, digest.hexdigest(), size, _now())
        return self._models[name].shown()

    async def chat(self, request: Request) -> dict[str, Any]:
        """An answer to a conversation."""
        started = time.monotonic_ns()
        body = await _body(request)
        listed, messages = self.find(body.get("model")), body.get("messages") or []
        head = {"model": body["model"], "created_at": _now()}
        if not messages:  # loads a model, or unloads it with keep_alive 0: here all stay
            reason = "unload" if body.get("keep_alive") == 0 else "load"
            message = {"role": "assistant", "content": ""}
            return {**head, "message": message, "done": True, "done_reason": reason}
        if body.get("stream", True):
            raise Refusal(400, "this server only answers in one piece: send stream false")
        try:
            text = listed.template.prompt(messages, think=bool(body.get("think")))
        except LocoError as error:
            raise Refusal(400, str(error)) from error
        if body.get("_debug_render_only"):
            return {**head, "_debug_info": {"rendered_template": text}}
        prompt = listed.template.encode(text)
        made = await self._answer(request, listed.served, start(prompt, body, self._length))
        tokens = made.tokens[:-1] if made.ended else made.tokens
        answer = listed.template.tokenizer.decode(tokens, skip_special_tokens=True)
        nanoseconds = round(made.seconds * 1e9)
        return {
            **head,
            "message": {"role": "assistant", "content": answer},
            "done": True,
            "done_reason": "stop" if made.ended else "length",
            "total_duration": time.monotonic_ns() - started,
            "load_duration": round(made.waited * 1e9),
            "prompt_eval_count": len(prompt),
            "prompt_eval_duration": 0,
            "eval_count": len(made.tokens),
            "eval_duration": nanoseconds,
        }

    def state(self) -> dict[str, Any]:
        """How much has been made, and how many answers are being made."""
        decoder = self.decoder
        return {"tokens": decoder.tokens, "answers": decoder.jobs, "running": decoder.running}

    async def _answer(self, request: Request, served: Served, start: Start) -> Made:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Made] = loop.create_future()

        def done(made: Made) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(lambda: future.done() or future.set_result(made))

        job = Job(served, start, done)
        self.decoder.submit(job)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({future, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                raise Refusal(499, "the client has left")
        finally:
            job.cancelled = not future.done()
            gone.cancel()
        made = future.result()
        if made.error:
            raise Refusal(500, made.error)
        return made


def application(service: Service) -> Starlette:
    """The routes."""

    async def version(_: Request) -> Response:
        return JSONResponse({"version": VERSION})

    async def tags(_: Request) -> Response:
        return JSONResponse({"models": service.tags()})

    async def state(_: Request) -> Response:
        return JSONResponse(service.state())

    async def chat(request: Request) -> Response:
        return JSONResponse(await service.chat(request))

    async def generate(request: Request) -> Response:
        body = await _body(request)
        service.find(body.get("model"))
        if body.get("prompt"):
            raise Refusal(400, "this server has no completions: ask /api/chat")
        reason = "unload" if body.get("keep_alive") == 0 else "load"
        head = {"model": body["model"], "created_at": _now(), "response": ""}
        return JSONResponse({**head, "done": True, "done_reason": reason})

    async def adapter(request: Request) -> Response:
        body = await _body(request)
        return JSONResponse(await asyncio.to_thread(service.add, body))

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return JSONResponse({"error": error.message}, status_code=error.status)

    return Starlette(
        routes=[
            Route("/api/version", version),
            Route("/api/tags", tags),
            Route("/api/chat", chat, methods=["POST"]),
            Route("/api/generate", generate, methods=["POST"]),
            Route("/study/adapter", adapter, methods=["POST"]),
            Route("/study/state", state),
        ],
        exception_handlers={Refusal: refused},
    )


def make(options: argparse.Namespace) -> Service:
    """The model on its device, its decoder running."""
    device = torch.device(options.device)
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    ops = decode_ops.choose(options.attention, device)
    length = -(-options.max_length // WIDTH) * WIDTH
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        model = Model.load(options.model, ops, length=length, dtype=dtype, device=device)
        slots = Slots(model, options.slots, _ends(options.model))
        decoder = Decoder(slots)
        decoder.start()
    return Service(options.model, full_name(options.name), options.system, decoder, length)


def full_name(model: str) -> str:
    """A model name with its tag; loco.serving has it too, with a client that is not in this venv."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _ends(folder: Path) -> list[int]:
    """The tokens that end an answer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    named = {vocabulary[token] for token in _ENDS if token in vocabulary}
    return sorted(named | {tokenizer.eos_token_id} - {None})


def _digest_of_folder(folder: Path, name: str, template: Template) -> tuple[str, int]:
    """Of a base: its name, config, template, system prompt and weights; and its bytes."""
    said = f"{name}\n{template.tokenizer.chat_template}\n{template.system}\n"
    digest, size = hashlib.sha256(said.encode()), 0
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        size += path.stat().st_size
    return digest.hexdigest(), size


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise Refusal(400, f"no JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refusal(400, "the body is no JSON object")
    return body


async def _disconnected(request: Request) -> None:
    """Until the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--name", required=True, help="what the base is called, with its tag")
    parser.add_argument("--port", type=int, default=11500, help="on 127.0.0.1; 0: a free one")
    parser.add_argument("--slots", type=int, default=384, help="answers at once")
    parser.add_argument("--max-length", type=int, default=1536, help="tokens of prompt and answer")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["bf16", "float32"], default="bf16")
    parser.add_argument("--attention", choices=["auto", "triton", "torch"], default="auto")
    parser.add_argument("--system", help="the base's system prompt; else its template's own")
    return parser.parse_args(given)


def serve(service: Service, listening: socket.socket) -> None:
    """Until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        application(service),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=600,
        timeout_graceful_shutdown=1,
        lifespan="off",
    )
    server = _Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server.run(sockets=[listening])
    service.decoder.stop()


class _Server(uvicorn.Server):
    """Leaves the signals to `serve`: uvicorn would send them on to itself at the end."""

    def capture_signals(self) -> Any:
        return nullcontext()


def main() -> None:
    """Loads, says so, serves."""
    options, started = arguments(), time.monotonic()
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", options.port))
    service = make(options)
    listening.listen(2048)
    ready = {
        "ready": True,
        "url": f"http://127.0.0.1:{listening.getsockname()[1]}",
        "model": service.base.served.name,
        "digest": service.base.digest,
        "slots": options.slots,
        "device": options.device,
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(ready), flush=True)
    serve(service, listening)


if __name__ == "__main__":
    sys.exit(main())
