"""The table of wire formats: which path leads where, and where its model is."""

from __future__ import annotations

import pytest

from proxy import routes
from proxy.errors import ProxyError
from proxy.formats import FORMATS, Place
from proxy.headers import CREDENTIALS, Outgoing
from proxy.original import Original
from proxy.routes import FRAMEWORKS, Kind, Route, match

KEY = (b"x-goog-api-key", b"k")


def post(target: bytes) -> Route:
    return match("POST", target, anthropic_version=False)


BODY, OPTION, FORM, PATH = Place.BODY, Place.OPTION, Place.FORM, Place.PATH

SERVED: list[tuple[bytes, str, bytes, Place]] = [
    (b"/anthropic/v1/messages", "anthropic", b"/v1/messages", BODY),
    (b"/v1/messages?beta=true", "anthropic", b"/v1/messages?beta=true", BODY),
    (b"/v1/complete", "anthropic", b"/v1/complete", BODY),
    (b"/v1/chat/completions", "openai", b"/chat/completions", BODY),
    (b"/v1//chat/completions", "openai", b"//chat/completions", BODY),
    (b"/v1/responses", "openai", b"/responses", OPTION),
    (b"/openai/v1/embeddings", "openai", b"/embeddings", BODY),
    (b"/openai/embeddings", "openai", b"/embeddings", BODY),
    (b"/openai/v1/audio/transcriptions", "openai", b"/audio/transcriptions", FORM),
    (
        b"/openai/deployments/gpt-4o/chat/completions?api-version=1",
        "azure",
        b"/openai/deployments/gpt-4o/chat/completions?api-version=1",
        PATH,
    ),
    (
        b"/openai/openai/deployments/gpt-4o/embeddings",
        "azure",
        b"/openai/deployments/gpt-4o/embeddings",
        PATH,
    ),
    (
        b"/openai/deployments/w/audio/transcriptions",
        "azure",
        b"/openai/deployments/w/audio/transcriptions",
        FORM,
    ),
    (b"/openai/openai/responses?api-version=1", "azure", b"/openai/responses?api-version=1", OPTION),
    (b"/openai/openai/v1/chat/completions", "azure", b"/openai/v1/chat/completions", BODY),
    (b"/genai/v1beta/models/g:generateContent", "genai", b"/v1beta/models/g:generateContent", PATH),
    (b"/genai/v1/models/a/g:embedContent", "genai", b"/v1/models/a/g:embedContent", PATH),
    (b"/genai/v1beta/models/g%3AcountTokens", "genai", b"/v1beta/models/g%3AcountTokens", PATH),
    (b"/genai/v1beta/models/g:newMethod", "genai", b"/v1beta/models/g:newMethod", PATH),
    (b"/cohere/v2/chat", "cohere", b"/v2/chat", BODY),
    (b"/cohere/v1/chat", "cohere", b"/v1/chat", OPTION),
    (b"/bedrock/model/a%3A0/converse", "bedrock", b"/model/a%3A0/converse", PATH),
    (b"/bedrock/model/arn%3Aaws%3Ax%2Fy/invoke", "bedrock", b"/model/arn%3Aaws%3Ax%2Fy/invoke", PATH),
]


@pytest.mark.parametrize(("target", "wire_format", "path", "place"), SERVED)
@pytest.mark.parametrize("framework", [b"", *FRAMEWORKS])
def test_a_model_route(target: bytes, wire_format: str, path: bytes, place: Place, framework: bytes) -> None:
    """A framework's prefix has OpenAI's paths at its root, and the others below their own prefixes."""
    if framework and wire_format == "anthropic" and target.startswith(b"/v1/"):
        # Only at the proxy's own root is a bare path Anthropic's.
        return
    route = post(framework + target)
    assert (route.kind, route.wire_format, route.path, route.place) == (Kind.MODEL, wire_format, path, place)
    assert route.prefix + route.path == framework + target
    assert route.operation == route.label


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_has_the_unified_api_at_its_root(framework: bytes) -> None:
    """With and without a version, its list of models too."""
    for begin in (framework, framework + b"/v1"):
        assert post(begin + b"/chat/completions").path == b"/chat/completions"
        assert match("GET", begin + b"/models", anthropic_version=False).kind is Kind.MODELS


@pytest.mark.parametrize(
    ("target", "model"),
    [
        (b"/genai/v1beta/models/gemini-2.5-flash:generateContent", "gemini-2.5-flash"),
        (b"/genai/v1beta/models/gemini2%2Fgemini-2.5:countTokens", "gemini2/gemini-2.5"),
        (b"/genai/v1beta/publishers/google/models/g:predict", "g"),
        (b"/bedrock/model/us.anthropic.claude-3%3A0/converse-stream", "us.anthropic.claude-3:0"),
        (b"/bedrock/model/a/b/invoke", "a/b"),
        (b"/openai/deployments/east/gpt-4o/chat/completions", "east/gpt-4o"),
    ],
)
def test_a_model_in_the_path(target: bytes, model: str) -> None:
    """It is read as a name, whatever is percent-encoded in it."""
    assert post(target).model == model


@pytest.mark.parametrize(
    "model",
    [
        b"a/models/b",
        b"model/b",
        b"a%2FDeployments%2fb",
        b"a%3Fb",
        b"a%23b",
        b"a;b",
        b"a%5Cb",
        b"a%00",
        b"a%252Fb",
        b"a%20b",
        b"a//b",
        b"%C3%A9",
        b"a%0Ab",
    ],
)
@pytest.mark.parametrize(
    "template",
    [
        b"/genai/v1beta/models/%b:generateContent",
        b"/bedrock/model/%b/converse",
        b"/openai/deployments/%b/chat/completions",
    ],
)
def test_a_model_that_readers_may_take_for_another_is_a_400(template: bytes, model: bytes) -> None:
    """A virtual key that allows one would else open the other."""
    with pytest.raises(ProxyError) as caught:
        post(template % model)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("target", "model", "path"),
    [
        (b"/genai/v1beta/models/g2/g-2.5:countTokens", "g-2.5", b"/v1beta/models/g-2.5:countTokens"),
        (b"/genai/v1beta/models/g:countTokens", "a b", b"/v1beta/models/a%20b:countTokens"),
        (b"/bedrock/model/b2%2Fx%3A0/converse", "x:0", b"/model/x%3A0/converse"),
        (b"/bedrock/model/x%3A0/converse", "x:0", b"/model/x%3A0/converse"),
        (b"/bedrock/model/x/converse?q=1", "arn:aws:p/y", b"/model/arn:aws:p%2Fy/converse?q=1"),
    ],
)
def test_the_path_of_another_model(target: bytes, model: str, path: bytes) -> None:
    """Only the model changes, and its percent-encoding stays where its name does."""
    original = Original("POST", post(target), Outgoing(()))
    assert original.target_path(model) == path


@pytest.mark.parametrize(
    ("target", "stream", "events"),
    [
        (b"/genai/v1beta/models/g:streamGenerateContent?alt=sse", True, True),
        (b"/genai/v1beta/models/g:streamGenerateContent", True, False),
        (b"/genai/v1beta/models/g:streamGenerateContent?x=alt=sse", True, False),
        (b"/genai/v1beta/models/g:generateContent?alt=sse", False, True),
        (b"/genai/v1beta/models/g:generateContent", False, False),
        (b"/openai/deployments/d/chat/completions?api-version=1", False, True),
        (b"/bedrock/model/m/converse-stream", True, False),
        (b"/bedrock/model/m/converse", False, False),
    ],
)
def test_a_path_that_asks_for_a_stream(target: bytes, stream: bool, events: bool) -> None:
    """And whether its events are server-sent ones."""
    route = post(target)
    assert (route.stream, route.events) == (stream, events)


@pytest.mark.parametrize(
    ("target", "kept", "keys"),
    [
        (b"/genai/v1beta/files?key=k", b"/genai/v1beta/files", [KEY]),
        (b"/genai/x?a=1&key=k%2F1&b=%20&b", b"/genai/x?a=1&b=%20&b", [(b"x-goog-api-key", b"k/1")]),
        (b"/genai/x?k%65y=k&key=l", b"/genai/x", [KEY, (b"x-goog-api-key", b"l")]),
        (b"/genai/x?key=&monkey=1", b"/genai/x?monkey=1", []),
        (b"/langchain/genai/x?key=k", b"/langchain/genai/x", [KEY]),
        (b"/genai/x?access_token=t", b"/genai/x", [(b"Authorization", b"Bearer t")]),
        (b"/openai/x?key=k", b"/openai/x?key=k", []),
        (b"/genai/x", b"/genai/x", []),
        (b"nonsense?key=k", b"nonsense?key=k", []),
    ],
)
def test_a_key_in_the_query_is_taken_out(target: bytes, kept: bytes, keys: list[tuple[bytes, bytes]]) -> None:
    """All else of the query stays as it came, in its order."""
    assert routes.without_keys(target) == (kept, keys)


@pytest.mark.parametrize("value", [b"a%0d%0ax:y", b"a%20b", b"%ff", b"a+b%09"])
def test_what_no_field_can_hold_is_no_key(value: bytes) -> None:
    """It would become a line of the head."""
    with pytest.raises(ProxyError) as caught:
        routes.without_keys(b"/genai/x?key=" + value)
    assert caught.value.status == 400


def test_a_provider_may_stand_before_the_model_that_is_looked_up() -> None:
    """The path names it; where it is no provider's name the plan says so."""
    route = match("GET", b"/v1/models/groq%2Fllama-3", anthropic_version=False)
    assert (route.kind, route.model, route.path) == (Kind.OPEN, "groq/llama-3", b"/models/groq%2Fllama-3")


@pytest.mark.parametrize("name", FORMATS)
def test_every_path_of_the_table_is_lower_case_and_has_a_label(name: str) -> None:
    """They are compared with paths in lower case."""
    form = FORMATS[name]
    for path in (*form.paths, *form.methods):
        assert path == path.lower()
    assert form.name == name
    assert form.operation(b"/x").startswith(f"/{name}")


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_free_and_what_is_pending_are_operations_of_the_format(name: str) -> None:
    """A name that no path has would never be met."""
    form = FORMATS[name]
    known = {form.operation(path) for path in form.paths}
    known |= {form.model_path_label + method.name for method in form.methods.values()}
    assert form.free <= known
    assert set(form.pending) <= known


@pytest.mark.parametrize(
    ("target", "wire_format", "path"),
    [
        (b"/openai/responses?api-version=1", "azure", b"/openai/responses?api-version=1"),
        (b"/openai/v1/files?a=b&api-version=1", "azure", b"/openai/v1/files?a=b&api-version=1"),
        (b"/litellm/openai/models?api-version=1", "azure", b"/openai/models?api-version=1"),
        (b"/openai/responses?x-api-version=1", "openai", b"/responses?x-api-version=1"),
        (b"/v1/responses?api-version=1", "openai", b"/responses?api-version=1"),
        (b"/litellm/v1/responses?api-version=1", "openai", b"/responses?api-version=1"),
    ],
)
def test_azure_is_told_by_the_version_that_it_wants(target: bytes, wire_format: str, path: bytes) -> None:
    """Its SDK at our root has OpenAI's paths for what has no deployment; only the query says whose."""
    route = post(target)
    assert (route.wire_format, route.path) == (wire_format, path)


UNSEEN = [
    b"/anthropic/v1/messages/batches",
    b"/openai/v1/batches",
    b"/v1/batches",
    b"/v1/fine_tuning/jobs",
    b"/openai/openai/batches?api-version=1",
    b"/cohere/v2/batches",
    b"/cohere/v1/embed-jobs",
    b"/genai/v1beta/models/g:batchGenerateContent",
    b"/genai/v1beta/models/g%3AbatchGenerateContent",
    b"/genai/v1beta/interactions",
    b"/litellm/v1/batches",
    b"/openai/v1/videos",
    b"/openai/v1/threads/t/runs",
    b"/bedrock/async-invoke",
]


@pytest.mark.parametrize("target", UNSEEN)
def test_work_whose_usage_passes_nowhere(target: bytes) -> None:
    """To begin it is known as such; to look at it is not."""
    assert post(target).unseen
    assert not match("GET", target, anthropic_version=False).unseen


@pytest.mark.parametrize("name", FORMATS)
def test_a_credential_of_a_format_is_known_as_one(name: str) -> None:
    """Else a client's own would go on to every provider."""
    form = FORMATS[name]
    fields = {form.credential[0], *(field for field, _ in form.query_keys.values())}
    assert {field.lower() for field in fields} <= CREDENTIALS


@pytest.mark.parametrize("name", [b"X-HTTP-Method-Override", b"x_http_method", b"X-Method-Override"])
def test_the_method_that_was_judged_is_the_method(name: bytes) -> None:
    """A GET that some provider takes for a POST would be a POST that no limit has seen."""
    head = Outgoing([(name, b"POST"), (b"x-a", b"b")]).head(
        host=b"h", own=None, keep_credentials=False, identity=False, length=None, chunked=False
    )
    assert head == b"Host: h\r\nx-a: b\r\n"
