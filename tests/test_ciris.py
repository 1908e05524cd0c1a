"""make ciris-env: the variables for CIRISAgent, and the check of a server, here a stand-in of one."""

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import ciris_env
import pytest
from forge.errors import ENVIRONMENT, GATE_NOT_PASSED
from forge.serving import access
from shipping import KEY, free_port, write


@pytest.fixture
def standin():
    """A stand-in of a server: `standin(answer, status=..., models=...)` is its port; it keeps what it was asked."""
    running = []

    def start(answer: str = "{}", status: int = 200, models: tuple[str, ...] = ("test",)):
        class Handler(BaseHTTPRequestHandler):
            asked: list = []

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.send({"data": [{"id": name} for name in models]} if status == 200 else {"detail": "Invalid key"})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.asked.append((self.headers["Authorization"], body))
                self.send({"choices": [{"message": {"content": answer}}]})

            def send(self, value):
                raw = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def told(checkout, run_script):
    """`told(port, code, key=...)`: what the script prints, and what it says is wrong."""

    def run(port: int, code: int, key: str = "") -> tuple[str, list[str]]:
        done = run_script("ciris_env.py", "--config", write(checkout, port=port), env={access.KEY: key})
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout, done.stderr.splitlines()

    return run


def test_the_variables_are_printed_also_without_a_server(told):
    port = free_port()
    printed, said = told(port, ENVIRONMENT)
    assert printed == (
        "export CIRIS_LLM_PROVIDER=openai_compatible\n"
        f"export OPENAI_API_BASE=http://127.0.0.1:{port}/v1\n"
        "export OPENAI_API_KEY=local\n"
        "export CIRIS_LLM_MODEL_NAME=test\n"
        "export CIRIS_LLM_TIMEOUT=120\n"
        "export CIRIS_DMA_TIMEOUT=360\n"
    )
    assert said[0].startswith(f"FAIL no server answers at http://127.0.0.1:{port}/v1: ")
    assert said[1] == "  do start it in another window: make serve CONFIG=config/test.yaml"


def test_a_json_answer(told, standin):
    server = standin('{"action": "speak"}')
    printed, said = told(server.server_port, 0, key=KEY)
    assert 'export OPENAI_API_KEY="$MODEL_FORGE_API_KEY"\n' in printed and KEY not in printed
    assert all(line.startswith("export ") for line in printed.splitlines())
    [line] = said
    assert line.startswith(f"ok   http://127.0.0.1:{server.server_port}/v1 answered in JSON after ")
    [(authorization, body)] = server.RequestHandlerClass.asked
    assert authorization == f"Bearer {KEY}"
    assert body["response_format"] == {"type": "json_object"} and body["model"] == "test"


@pytest.mark.parametrize("answer", ["Sure! {}", '{"action": "spe', "[1]", "", "{}", '{"action": "sing"}'])
def test_an_answer_that_is_not_the_json_that_was_asked_for(told, standin, answer):
    _, said = told(standin(answer).server_port, GATE_NOT_PASSED)
    assert said[0] == f"FAIL asked for a JSON object with an action in JSON mode, the server answered {answer!r}"


def test_a_wrong_key_and_another_model(told, standin):
    _, said = told(standin(status=401).server_port, ENVIRONMENT)
    assert said[0].endswith("/v1 answered with 401: Invalid key")
    assert said[1] == "  do start the server with the same MODEL_FORGE_API_KEY"
    _, said = told(standin(models=("other",)).server_port, ENVIRONMENT)
    assert "/v1 serves other, not test" in said[0]


def test_the_variables_can_be_read_by_a_shell(tmp_path):
    lines = [f"export {name}={value}" for name, value in ciris_env.variables("http://x/v1", "a.b-c", KEY).items()]
    script = "\n".join([*lines, 'printf %s "$OPENAI_API_KEY"'])
    done = subprocess.run(["sh", "-c", script], env={access.KEY: KEY}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (KEY, "")
