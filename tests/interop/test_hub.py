import http.server
import json
import pathlib
import threading
import time

import pytest
from huggingface_hub import constants

from uvit_jax.errors import UserError
from uvit_jax.interop.hub import find_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PUBLISHED = {
    "config.json": b"{}",
    "weights.safetensors": b"tensors",
    "weights.bin": b"pickles",
    "vae/weights.bin": b"more pickles",
    "README.md": b"text",
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def unreachable(cache, monkeypatch):
    """No hub: a port of this machine at which nothing listens."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return cache


def put_in_cache(cache, *files):
    snapshot = cache / "models--org--model" / "snapshots" / COMMIT
    for file in files:
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).write_bytes(PUBLISHED[file])
    refs = cache / "models--org--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    return snapshot


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one model."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        headers, path = {}, self.path.partition("?")[0]
        if (
            path in ("/api/models/org/model", "/api/models/org/model/revision/main")
            and path not in self.server.fails
        ):
            body = {
                "id": "org/model",
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in PUBLISHED],
            }
        elif path == f"/api/models/org/model/tree/{COMMIT}":
            body = [
                {"type": "file", "path": n, "size": len(b), "oid": f"{len(b):040}"}
                for n, b in PUBLISHED.items()
            ]
        elif (
            path.startswith("/org/model/resolve/") and (name := path.split("/", 5)[5]) in PUBLISHED
        ):
            self.server.downloads += [name] if self.command == "GET" else []
            body = PUBLISHED[name]
            headers = {"ETag": f'"{len(body):040}"', "X-Repo-Commit": COMMIT}
        else:
            body, headers = {}, {"X-Error-Code": "RepoNotFound"}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(404 if "X-Error-Code" in headers else 200)
        for key, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(cache, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.downloads, server.fails = [], set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield server
    server.shutdown()
    server.server_close()


def test_a_path_is_itself(unreachable, tmp_path):
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "weights.pth").touch()
    assert find_model(str(tmp_path / "weights.pth")) == tmp_path / "weights.pth"
    # A folder goes before the model of the same name.
    assert find_model("org/model", ("config.json",)) == pathlib.Path("org/model")


def test_a_cached_model_is_found_without_asking_the_hub(unreachable):
    snapshot = put_in_cache(unreachable, "config.json", "weights.bin", "vae/weights.bin")
    sets = [("config.json", "weights.safetensors"), ("config.json", "weights.bin")]
    assert find_model("org/model", *sets) == snapshot
    assert find_model("org/model", ("*.bin",)) == snapshot
    assert find_model("org/model/weights.bin") == snapshot / "weights.bin"
    for name in ("org/model/vae", "org/model:vae"):
        assert find_model(name, ("weights.bin",)) == snapshot / "vae"


def test_of_a_model_on_the_hub_only_the_files_needed_are_downloaded_and_only_once(hub, cache):
    sets = [
        ("config.json", "absent.safetensors"),
        ("config.json", "*.safetensors"),
        ("weights.bin",),
    ]
    for _ in range(2):
        folder = find_model("org/model", *sets)
        assert folder.is_relative_to(cache)
        assert {path.name for path in folder.iterdir()} == {"config.json", "weights.safetensors"}
        assert sorted(hub.downloads) == ["config.json", "weights.safetensors"]
    assert find_model("org/model/vae/weights.bin").read_bytes() == b"more pickles"
    assert len(hub.downloads) == 3


def test_a_star_matches_nothing_in_other_folders(hub):
    find_model("org/model", ("*.bin",))
    assert hub.downloads == ["weights.bin"]


def test_a_weights_file_comes_with_the_files_it_needs_beside_it(hub):
    path = find_model("org/model/weights.bin", ("config.json",))
    assert (path.name, path.with_name("config.json").is_file()) == ("weights.bin", True)


def test_a_cached_model_that_lacks_a_file_is_completed(hub, cache):
    put_in_cache(cache, "config.json")
    assert (find_model("org/model", ("config.json", "weights.bin")) / "weights.bin").is_file()
    assert hub.downloads == ["weights.bin"]


def test_a_hub_that_fails_before_the_download_is_named(hub, cache):
    put_in_cache(cache, "config.json")
    hub.fails.add("/api/models/org/model/revision/main")
    with pytest.raises(
        UserError,
        match=r"the download from \S+ failed \(ConnectionError: the download of config.json and "
        r"weights.bin",
    ):
        find_model("org/model", ("config.json", "weights.bin"))


def test_a_model_without_the_files_is_refused_with_what_it_holds(hub):
    with pytest.raises(
        UserError,
        match=r"^org/model on http\S+ holds README\.md, config\.json, .*, expected a and b, or",
    ):
        find_model("org/model", ("a", "b"), ("c",))
    assert hub.downloads == []


def test_a_model_that_is_not_on_the_hub_is_refused(hub, cache):
    with pytest.raises(UserError) as refused:
        find_model("org/other", ("config.json",))
    assert str(refused.value).startswith(
        f"there is no file or folder {cache.parent}/org/other, org/other is not (whole) in"
    )
    assert "no model of that name on http://127.0.0.1" in str(refused.value)


def test_an_unreachable_hub_fails_quickly_with_all_that_was_tried(unreachable):
    start = time.monotonic()
    with pytest.raises(UserError) as refused:
        find_model("org/model", ("config.json",))
    assert time.monotonic() - start < 5
    message = str(refused.value)
    for part in (
        f"{unreachable.parent}/org/model",
        f"the cache {unreachable}",
        "http://127.0.0.1:9",
        "refused",
    ):
        assert part in message
    assert "\n" not in message
    assert not message.endswith(".")


def test_offline_mode_is_named(unreachable, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        find_model("org/model", ("config.json",))


@pytest.mark.parametrize(
    "name",
    [
        "model",
        "/no/such/folder",
        "weights/kl.pth",
        "./org/model",
        "org/../model",
        "a/b:c:d",
        "~nobody/x",
        "",
    ],
)
def test_a_name_that_can_be_no_models_is_refused_without_asking(unreachable, name):
    with pytest.raises(
        UserError, match=r"there is no file or folder .*nor can .* be a hub's name \(org/model\)$"
    ):
        find_model(name, ("config.json",))


def test_an_address_is_refused_with_its_hub_name(unreachable):
    with pytest.raises(
        UserError,
        match=r"is an address, expected a file or folder .* or the hub's name 'org/model': do",
    ):
        find_model("https://huggingface.co/org/model/tree/main", ("config.json",))
    with pytest.raises(
        UserError, match=r"is an address, expected .* or a hub's name \(org/model\)"
    ):
        find_model("gs://bucket/model", ("config.json",))


def test_a_typo_in_a_path_that_could_be_a_hubs_name_is_explained_both_ways(unreachable, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "sd-vae-mse").mkdir()
    with pytest.raises(
        UserError,
        match=r"models/sd-vae-mes \(did you mean models/sd-vae-mse\?\), .* not \(whole\) in",
    ):
        find_model("models/sd-vae-mes", ("config.json",))
    with pytest.raises(
        UserError, match=r"models/kl \(the folder holds sd-vae-mse\), models/kl is not \(whole\) in"
    ):
        find_model("models/kl", ("config.json",))
