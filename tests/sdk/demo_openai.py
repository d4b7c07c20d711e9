"""The OpenAI SDK with nothing but its variables set: JSON and streams; prints one JSON object."""

import json

import openai

MESSAGES = [{"role": "user", "content": "Say »grüß Gott«"}]


def main():
    client = openai.OpenAI()
    chat = client.chat.completions.create
    whole = chat(model="demo/gpt-4o-mini", messages=MESSAGES)
    chunks = list(
        chat(model="gpt-4o-mini", messages=MESSAGES, stream=True, stream_options={"include_usage": True})
    )
    response = client.responses.create(model="gpt-4o-mini", input="Say »grüß Gott«")
    with client.responses.stream(model="gpt-4o-mini", input="Say »grüß Gott«") as stream:
        types = [event.type for event in stream]
        final = stream.get_final_response()
    try:
        client.models.retrieve("nobody")
        error = None
    except openai.NotFoundError as raised:
        error = [raised.status_code, raised.body["type"]]
    seen = {
        "whole": whole.choices[0].message.content,
        "stream": "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices),
        "usage": [whole.usage.to_dict(), chunks[-1].usage.to_dict()],
        "response": response.output_text,
        "response_stream": final.output_text,
        "response_types": [types[0], types[-1]],
        "embedding": client.embeddings.create(model="any", input="Hello").data[0].embedding,
        "models": [model.id for model in client.models.list()],
        "error": error,
    }
    print(json.dumps(seen))


main()
