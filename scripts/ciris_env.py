"""Print the variables by which CIRISAgent finds the served model, and check that the server answers it in JSON.

Reads serve.* and project.name of the config and the key MODEL_FORGE_API_KEY, whose value is not printed. Sends the
server of `make serve` one request as CIRISAgent does, in JSON mode. Ends with 7 when no server runs, with 3 when the
answer is not the JSON that was asked for. The variables alone go to standard output.
"""

import json
import sys
import time

from forge import command, config
from forge.errors import ENVIRONMENT, GATE_NOT_PASSED, ForgeError
from forge.serving import access, requests

# CIRISAgent gives up after 20 s unless told otherwise: little for a processor without a GPU.
PATIENCE = 120
# What waits for the model's answer there must wait longer, so that a second try has its time: 90 s by default.
LONGER = 3 * PATIENCE
ACTIONS = ("speak", "ponder")
QUESTION = (
    'Answer with one JSON object and nothing else. It follows this JSON schema: {"type": "object", "properties": '
    f'{{"action": {{"type": "string", "enum": {json.dumps(ACTIONS)}}}}}, "required": ["action"]}}. '
    "Which action do you take when somebody greets you?"
)


def main() -> None:
    arguments = command.parser(__doc__).parse_args()
    command.guard(lambda: tell(config.load(arguments.config)), debug=arguments.debug)


def tell(configuration: config.Config) -> None:
    values, key = configuration.values, access.key()
    url = access.url(values.serve.host, values.serve.port)
    for name, value in variables(url, values.project.name, key).items():
        print(f"export {name}={value}", flush=True)
    check(url, values.project.name, key, f"make serve CONFIG={configuration.path}")


def variables(url: str, model: str, key: str | None) -> dict[str, str]:
    """As a shell reads them."""
    return {
        "CIRIS_LLM_PROVIDER": "openai_compatible",
        "OPENAI_API_BASE": url,
        "OPENAI_API_KEY": f'"${access.KEY}"' if key else "local",  # some value it must have
        "CIRIS_LLM_MODEL_NAME": model,
        "CIRIS_LLM_TIMEOUT": str(PATIENCE),
        "CIRIS_DMA_TIMEOUT": str(LONGER),
    }


def check(url: str, model: str, key: str | None, start: str) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "response_format": {"type": "json_object"},
        "temperature": 0,
        "max_tokens": 256,
    }
    began = time.monotonic()
    try:
        served = [item["id"] for item in requests.ask(f"{url}/models", key=key, wait=10)["data"]]
        if model not in served:
            raise ForgeError(f"{url} serves {', '.join(served)}, not {model}", f"stop it, then {start}", ENVIRONMENT)
        answer = requests.ask(f"{url}/chat/completions", body, key)["choices"][0]["message"]["content"] or ""
    except requests.Unreachable as error:
        raise ForgeError(
            f"no server answers at {url}: {error}", f"start it in another window: {start}", ENVIRONMENT
        ) from None
    except requests.Refused as error:
        wanted = (
            f"start the server with the same {access.KEY}" if error.status == 401 else "see what the server printed"
        )
        raise ForgeError(f"{url} answered with {error.status}: {error}", wanted, ENVIRONMENT) from None
    except (LookupError, TypeError):
        raise ForgeError(f"{url} is no OpenAI-compatible server", f"stop it, then {start}", ENVIRONMENT) from None
    if not is_wanted(answer):
        raise ForgeError(
            f"asked for a JSON object with an action in JSON mode, the server answered {answer[:80]!r}",
            "CIRISAgent cannot work with that: train on answers in JSON, or take a larger base",
            GATE_NOT_PASSED,
        )
    told = f"ok   {url} answered in JSON after {time.monotonic() - began:.0f} s: {' '.join(answer.split())[:80]}"
    print(told, file=sys.stderr)  # standard output may go into .env


def is_wanted(text: str) -> bool:
    """An object that follows the schema of QUESTION."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("action") in ACTIONS


if __name__ == "__main__":
    main()
