"""boto3 against Bedrock's runtime; prints one JSON object. Argument: STEPS, as JSON.

A step has a name, the base URL, what is done (a function below), the model, and headers for every request.
"""

import json
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

MESSAGES = [{"role": "user", "content": [{"text": "Sag »grüß Gott« 🙂, please"}]}]
CLAUDE = {
    "body": json.dumps(
        {
            "anthropic_version": "bedrock-2023-05-31",
            "max_tokens": 64,
            "messages": [{"role": "user", "content": "Sag »grüß Gott« 🙂, please"}],
        },
        ensure_ascii=False,
    ),
    "contentType": "application/json",
}


def connected(base_url, headers):
    client = boto3.client(
        "bedrock-runtime",
        endpoint_url=base_url,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=30),
    )

    def add(request, **_):
        for name, value in headers.items():
            request.headers[name] = value

    client.meta.events.register("before-sign.bedrock-runtime", add)
    return client


def served(answer):
    """Who served, and the provider's own request id."""
    meta = answer["ResponseMetadata"]
    by = {name: value for name, value in meta["HTTPHeaders"].items() if name.startswith("x-bifrost-")}
    return {"id": meta["RequestId"], **by}


def plain(answer):
    return {name: value for name, value in answer.items() if name != "ResponseMetadata"}


def told(error):
    """What a program sees of an error."""
    seen = {"class": type(error).__name__, "client_error": isinstance(error, ClientError)}
    if isinstance(error, ClientError):
        seen |= error.response["Error"]
        seen |= {"status": error.response["ResponseMetadata"]["HTTPStatusCode"]}
        seen |= {"id": error.response["ResponseMetadata"].get("RequestId")}
    return seen


def streamed(events):
    """The events of a stream, and the error that ends it."""
    seen = []
    try:
        for event in events:
            seen.append(json.loads(json.dumps(event, default=bytes.decode)))
    except Exception as error:
        # What the library below raises is not wrapped.
        return [seen, {"class": type(error).__name__, "text": str(error)}]
    return [seen, None]


def operations(client, model):
    """Every operation that names a model, once."""
    converse = client.converse(modelId=model, messages=MESSAGES)
    stream = client.converse_stream(modelId=model, messages=MESSAGES)
    invoke = client.invoke_model(modelId=model, **CLAUDE)
    chunks = client.invoke_model_with_response_stream(modelId=model, **CLAUDE)
    counted = client.count_tokens(modelId=model, input={"invokeModel": {"body": CLAUDE["body"].encode()}})
    return {
        "converse": plain(converse),
        "converse_stream": streamed(stream["stream"]),
        "invoke": json.loads(invoke["body"].read()),
        "invoke_tokens": invoke["ResponseMetadata"]["HTTPHeaders"]["x-amzn-bedrock-input-token-count"],
        "invoke_stream": streamed(chunks["body"]),
        "count": counted["inputTokens"],
        "served": [served(each) for each in (converse, stream, invoke, chunks, counted)],
    }


def others(client, _):
    """What names no model: a POST with a body, a GET with a query."""
    content = [{"text": {"text": "Hm"}}]
    applied = client.apply_guardrail(
        guardrailIdentifier="arn:aws:bedrock:us-east-1:123456789012:guardrail/g1",
        guardrailVersion="1",
        source="INPUT",
        content=content,
    )
    return [plain(client.list_async_invokes(maxResults=5, sortOrder="Ascending")), plain(applied)]


def stream(client, model):
    return streamed(client.converse_stream(modelId=model, messages=MESSAGES)["stream"])


def converse(client, model, text="Hello"):
    """An answer, and who gave it, or what was raised."""
    try:
        answer = client.converse(modelId=model, messages=[{"role": "user", "content": [{"text": text}]}])
    except (BotoCoreError, ClientError) as error:
        return told(error)
    return {"text": answer["output"]["message"]["content"][-1]["text"], "served": served(answer)}


def converse_at_length(client, model):
    return converse(client, model, "x" * 30000)


def converse_stream(client, model):
    try:
        client.converse_stream(modelId=model, messages=MESSAGES)
    except (BotoCoreError, ClientError) as error:
        return told(error)
    return None


def main(steps):
    result = {}
    for name, (base_url, what, model, headers) in json.loads(steps).items():
        result[name] = globals()[what](connected(base_url, headers), model)
    print(json.dumps(result, default=str))


main(*sys.argv[1:])
