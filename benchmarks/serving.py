"""Inference servers on the same model and requests: time to first token and tokens per second.

    python -m benchmarks.serving [--json] [--clients 1 4 16] [--rounds 3] [--llamafactory .../bin/python]

SmolLM2-135M-Instruct in float32 on all cores (llama.cpp: the same model as GGUF f16). Each client sends chats
one after the other, streamed, decoded greedily. Servers are measured in turns; figures are medians over the rounds.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import httpx2

from benchmarks.peers import servers
from tuneline.config.sections.model import CatalogueModel
from tuneline.model import source

MAX_TOKENS = 48
QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "Explain gravity to a child in two sentences, please, and give an example from daily life.",
    "Write a short poem about the sea.",
    "List the planets of the solar system in order, with one fact about each of them.",
    "How do I boil an egg?",
]


async def request(client: httpx2.AsyncClient, model: str, question: str) -> tuple[float, float, int]:
    """Return seconds to the first text, seconds to the end, and the number of tokens of a streamed chat."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    start = time.perf_counter()
    first, pieces = 0.0, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line[6:]).get("choices") or [{}]
            if (choices[0].get("delta") or {}).get("content"):
                first = first or time.perf_counter() - start
                pieces += 1
    return first, time.perf_counter() - start, pieces


async def load(address: str, model: str, num_clients: int, per_client: int) -> dict[str, float]:
    """Measure a server with clients that send requests at the same time."""
    limits = httpx2.Limits(max_connections=num_clients)
    headers = {"Authorization": f"Bearer {servers.KEY}"}
    async with httpx2.AsyncClient(base_url=address, timeout=600, limits=limits, headers=headers) as client:

        async def session(number: int) -> list[tuple[float, float, int]]:
            questions = [QUESTIONS[(number + i) % len(QUESTIONS)] for i in range(per_client)]
            return [await request(client, model, question) for question in questions]

        start = time.perf_counter()
        results = [result for each in await asyncio.gather(*map(session, range(num_clients))) for result in each]
        seconds = time.perf_counter() - start
    return {
        "first_token_ms": 1000 * median(first for first, _, _ in results),
        "tokens_per_second": sum(pieces for _, _, pieces in results) / seconds,
    }


def link_files(folder: Path, target: Path) -> None:
    """Link the files of a folder into another one."""
    for path in folder.iterdir():
        if path.is_file() and not (target / path.name).exists():
            (target / path.name).symlink_to(path.resolve())


def contenders(folder: Path, args: argparse.Namespace) -> list[servers.Server]:
    """Return the servers to measure."""
    servers_to_measure = [
        servers.ours(folder),
        *(servers.transformers_serve(folder, batching=each) for each in (False, True)),
    ]
    servers_to_measure += [servers.llama_cpp(args.gguf)] if args.gguf else []
    servers_to_measure += [servers.llamafactory(folder, args.llamafactory)] if args.llamafactory else []
    return [server for server in servers_to_measure if server.name not in (args.without or [])]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all servers, in turns."""
    tokenizer, base_model, _ = source.resolve_model(CatalogueModel(type="catalogue", name="smollm2-135m-instruct"))
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as scratch, ExitStack() as stack:
        folder = Path(scratch) / "smollm2"
        folder.mkdir()
        for manifest in (base_model, tokenizer):
            link_files(source.manifest_folder(manifest), folder)
        addresses = {
            server.name: (stack.enter_context(servers.running(server, Path(scratch) / f"{i}.log"))[0], server.model)
            for i, server in enumerate(contenders(folder, args))
        }
        rounds: dict[str, dict[int, list[dict[str, float]]]] = {name: {} for name in addresses}
        for address, model in addresses.values():
            asyncio.run(load(address, model, 1, 1))  # warm-up
        for _ in range(args.rounds):
            for clients in args.clients:
                for name, (address, model) in addresses.items():
                    rounds[name].setdefault(clients, []).append(
                        asyncio.run(load(address, model, clients, args.requests))
                    )
    return report(rounds)


def report(rounds: dict[str, dict[int, list[dict[str, float]]]]) -> dict[str, Any]:
    """Return medians, and the ratio of our tokens per second to those of each peer."""
    figures = {
        name: {
            str(clients): {key: round(median(each[key] for each in runs), 1) for key in runs[0]}
            for clients, runs in by_clients.items()
        }
        for name, by_clients in rounds.items()
    }
    ours = figures.get("tuneline", {})
    ratios = {
        name: {
            clients: round(ours[clients]["tokens_per_second"] / entry["tokens_per_second"], 2)
            for clients, entry in by_clients.items()
            if clients in ours and entry["tokens_per_second"]
        }
        for name, by_clients in figures.items()
        if name != "tuneline"
    }
    return {"servers": figures, "speedup": ratios}


def main() -> None:
    """Print the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=2, help="requests per client")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gguf", type=Path, help="GGUF file of the model, for llama.cpp")
    parser.add_argument("--without", nargs="*", help="servers to leave out")
    parser.add_argument("--llamafactory", default=os.environ.get("TUNELINE_LLAMAFACTORY_PYTHON"))
    args = parser.parse_args()
    result = measure(args)
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for name, by_clients in result["servers"].items():
        for clients, entry in by_clients.items():
            print(
                f"{name:42} {clients:>3} clients {entry['first_token_ms']:9.0f} ms {entry['tokens_per_second']:8.1f}/s"
            )
    for name, ratios in result["speedup"].items():
        print(f"speedup over {name}: {ratios}")


if __name__ == "__main__":
    main()
