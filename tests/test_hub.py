"""Loading from the hub, with a small hub of our own on this machine in its place."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from lib import report
from tests.conftest import save, tiny_model

COMMIT = "c0ffee" + 34 * "0"


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves `folder` as the model repository `org/tiny`; every other repository is unknown."""

    folder = None

    def do_HEAD(self):
        self.respond(body=False)

    def do_GET(self):
        self.respond(body=True)

    def respond(self, body):
        prefix, listing = "/org/tiny/resolve/", "/api/models/org/tiny"
        headers = {"X-Repo-Commit": COMMIT}
        if self.path == "/":
            status, content = 200, b"hub"
        elif self.path.startswith(prefix):
            path = self.folder / self.path.removeprefix(prefix).split("/", 1)[1].split("?")[0]
            status, content = (200, path.read_bytes()) if path.is_file() else (404, b"")
            headers |= {"ETag": f'"{len(content)}"'} if status == 200 else {"X-Error-Code": "EntryNotFound"}
        elif self.path.startswith(listing):
            names = [
                {"rfilename": path.name, "type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0"}
                for path in self.folder.iterdir()
            ]
            tree = "/tree/" in self.path
            content = json.dumps(names if tree else {"id": "org/tiny", "sha": COMMIT, "siblings": names}).encode()
            status, headers = 200, headers | {"Content-Type": "application/json"}
        else:
            status, content, headers = 404, b"", {"X-Error-Code": "RepoNotFound"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_args):
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tokenizer):
    Hub.folder = save(tmp_path_factory.mktemp("hub"), tiny_model("gpt2"), tokenizer)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def layerwise(endpoint, home, text_file, *arguments):
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    del environment["HF_HUB_OFFLINE"]
    command = [sys.executable, "main_llm.py", "--exp2", "--dataset", text_file, "--nsamples", "2", "--seqlen", "16"]
    command += [*arguments, "--savedir", home / "out"]
    return subprocess.run(command, cwd=report.ROOT, env=environment, capture_output=True, text=True)


def test_a_hub_model_loads_and_its_commit_is_recorded(hub, text_file, tmp_path):
    done = layerwise(hub, tmp_path, text_file, "--model", "org/tiny")
    assert done.returncode == 0, done.stderr
    provenance = json.loads((tmp_path / "out" / "tiny_layerwise.json").read_text())["provenance"]
    assert provenance["model"] == {"name": "org/tiny", "type": "gpt2", "hub_id": "org/tiny", "revision": COMMIT}
    # from now on the local cache is enough
    for arguments in (["--offline"], []):
        done = layerwise("http://127.0.0.1:1", tmp_path, text_file, "--model", "org/tiny", *arguments)
        assert done.returncode == 0, done.stderr


def test_an_unknown_model_is_one_line(hub, text_file, tmp_path):
    done = layerwise(hub, tmp_path, text_file, "--model", "org/nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown model 'org/nowhere'")
    assert done.stderr.count("\n") == 1


def test_offline_holds_for_datasets_without_importing_it():
    code = (
        "import sys\nfrom lib import hub\nhub.go_offline()\nassert 'datasets' not in sys.modules\n"
        "import datasets\nassert datasets.config.HF_HUB_OFFLINE\n"
        "datasets.config.HF_HUB_OFFLINE = False\nhub.go_offline()\nassert datasets.config.HF_HUB_OFFLINE\n"
    )
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=report.ROOT, env=online)
