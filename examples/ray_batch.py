"""Many prompts at once, by Ray Data, at a server that answers them over HTTP: ``moebind serve``, or replicas of it.

pip install ".[ray]"   # in .venv: "moebind[ray]"
python examples/ray_batch.py http://127.0.0.1:11435 prompts.txt answers.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import aiohttp
import ray
from ray.data.llm import HttpRequestProcessorConfig, build_processor

#: How often a request is sent, and seconds before it is sent again, doubled each time.
TRIES, WAIT = 8, 0.5


async def again(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Send a request again that could not be answered: Serve says 500 where a replica died over it."""
    for attempt in range(TRIES - 1):
        try:
            answer = await send(request)
            if answer.status < 500:
                return answer
            answer.release()
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(WAIT * 2**attempt)
    return await send(request)


def session() -> aiohttp.ClientSession:
    """A session that sends again, and waits: aiohttp's own gives up after five minutes, in which some only wait."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), middlewares=(again,))


def answers(url: str, rows: ray.data.Dataset, *, at_once: int = 16, **asked: Any) -> ray.data.Dataset:
    """Rows with a ``prompt``, each with its ``answer``."""
    config = HttpRequestProcessorConfig(
        url=f"{url}/v1/chat/completions",
        batch_size=at_once,
        max_retries=TRIES,  # for what breaks off within an answer
        base_retry_wait_time_in_s=WAIT,
        session_factory=session,
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            **row,
            "payload": {"messages": [{"role": "user", "content": row["prompt"]}], "model": "any", **asked},
        },
        postprocess=lambda row: {
            "prompt": row["prompt"],
            "answer": row["http_response"]["choices"][0]["message"]["content"],
        },
    )
    return processor(rows)


def main() -> None:
    """Read prompts, a line each; write answers, a line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("prompts")
    parser.add_argument("answers")
    asked = parser.parse_args()
    with open(asked.prompts, encoding="utf-8") as lines:
        prompts = ray.data.from_items([{"prompt": line.rstrip("\n")} for line in lines if line.strip()])
    answers(asked.url.rstrip("/"), prompts, temperature=0).to_pandas().to_json(
        asked.answers, orient="records", lines=True, force_ascii=False
    )


if __name__ == "__main__":
    main()
