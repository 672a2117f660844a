import pytest
from pydantic import SecretStr, ValidationError

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.service.app import create_app
from labeling_pipeline.service.config import ServiceConfig, api_key_of_environment, is_loopback
from tests.service.conftest import image_bytes

KEY = "correct horse battery staple"


def ask(client, **headers: str):
    files = {"file": image_bytes()}
    return client.post("/detection", files=files, data={"categories": "cat"}, headers=headers)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        pytest.param(f"Bearer {KEY}", 200, id="the key"),
        pytest.param(f"bearer  {KEY}", 200, id="the scheme in any case"),
        pytest.param(None, 401, id="nothing"),
        pytest.param(KEY, 401, id="no scheme"),
        pytest.param(f"Basic {KEY}", 401, id="another scheme"),
        pytest.param(f"Bearer {KEY[:-1]}", 401, id="a part of the key"),
        pytest.param(f"Bearer {KEY}x", 401, id="more than the key"),
        pytest.param("Bearer", 401, id="an empty key"),
        pytest.param("Bearer \u00e9\u00e9".encode(), 401, id="not ASCII"),
    ],
)
def test_with_a_key_every_request_must_carry_it(serve, authorization, status):
    client = serve(api_key=KEY, host="0.0.0.0")
    headers = {"Authorization": authorization} if authorization else {}
    reply = ask(client, **headers)
    assert reply.status_code == status
    if status == 401:
        assert reply.headers["www-authenticate"] == "Bearer"
        assert reply.json()["status"] == 401
        assert KEY not in reply.text


@pytest.mark.parametrize("path", ["/health", "/tasks", "/nothing", "/docs-files", "/docs/x"])
def test_without_the_key_nothing_but_the_pages_is_open(serve, path):
    client = serve(api_key=KEY)
    assert client.get(path).status_code == 401


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/docs-files/swagger-ui.css"])
def test_the_pages_are_open_so_that_a_key_can_be_given_there(serve, path):
    client = serve(api_key=KEY)
    assert client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["..%2fcore.py", "%2e%2e/core.py", "../core.py", "//etc/passwd"])
def test_the_files_of_the_documentation_are_all_that_lies_there(serve, path):
    client = serve(api_key=KEY)
    assert client.get(f"/docs-files/{path}").status_code in (401, 404)


@pytest.mark.parametrize("key", ["", " ", "line\n", " key", "schl\u00fcssel", "a\0b"])
def test_a_key_that_no_header_can_carry_opens_and_closes_nothing(key):
    with pytest.raises(ValidationError, match="expected printable ASCII"):
        ServiceConfig(api_key=SecretStr(key))


@pytest.mark.parametrize(
    ("value", "key"),
    [(f"{KEY}\n", KEY), (f" {KEY} ", KEY), ("", None), (" \n", None), (None, None)],
)
def test_the_key_comes_from_the_environment_without_the_space_around_it(monkeypatch, value, key):
    if value is None:
        monkeypatch.delenv("LABELING_API_KEY", raising=False)
    else:
        monkeypatch.setenv("LABELING_API_KEY", value)
    found = api_key_of_environment()
    assert (found and found.get_secret_value()) == key


def test_without_a_key_the_service_stays_on_its_own_machine(script):
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ConfigurationError, match="set LABELING_API_KEY"):
            create_app(ServiceConfig(models=(script(),), host=host))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:6996", 200),
        ("localhost", 200),
        ("[::1]:6996", 200),
        ("example.org", 421),
        ("127.0.0.1.example.org", 421),
        ("", 421),
    ],
)
def test_without_a_key_it_answers_only_under_names_of_its_own_machine(client, host, status):
    assert client.get("/health", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback_is_told_from_names_that_look_like_it(host, local):
    assert is_loopback(host) is local


def test_pages_of_other_origins_may_read_nothing_unless_they_are_named(serve):
    origin = {"origin": "https://example.org"}
    assert "access-control-allow-origin" not in serve().get("/health", headers=origin).headers
    client = serve(cors_origins=("https://example.org",), api_key=KEY)
    reply = ask(client, **origin, Authorization=f"Bearer {KEY}")
    assert reply.headers["access-control-allow-origin"] == "https://example.org"
    assert "X-Rex-Detections" in reply.headers["access-control-expose-headers"]
    preflight = client.options(
        "/detection",
        headers=origin
        | {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        },
    )
    assert preflight.status_code == 200
    other = ask(client, origin="https://example.net", Authorization=f"Bearer {KEY}")
    assert "access-control-allow-origin" not in other.headers


def test_pages_may_load_and_call_nothing_but_the_service(client):
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize(
    "options",
    [
        {"max_files": 65},
        {"max_file_bytes": 65 << 20},
        {"port": 70_000},
        {"models": ()},
        {"timeout_s": 0},
    ],
)
def test_limits_that_contradict_each_other_are_refused(options):
    with pytest.raises(ValidationError):
        ServiceConfig(**options)
