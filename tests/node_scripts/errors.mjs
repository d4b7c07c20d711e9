// What the TypeScript SDKs throw; prints one JSON object. Arguments: ORIGIN CALLS.
//
// CALLS is a JSON object: by name, which API it is, the client's key, the call's fields, its model and so on.

import Anthropic from "@anthropic-ai/sdk";
import OpenAI, { toFile } from "openai";

const [origin, calls] = process.argv.slice(2);
const options = (path, apiKey) => ({ baseURL: origin + path, apiKey, maxRetries: 0 });

const APIS = {
  anthropic: (key, body, more) => {
    const messages = [{ role: "user", content: body.text }];
    const client = new Anthropic(options("/anthropic", key));
    return client.messages.create({ model: body.model, stream: body.stream, max_tokens: 64, messages }, more);
  },
  openai: (key, body, more) => {
    const messages = [{ role: "user", content: body.text }];
    const client = new OpenAI(options("/openai/v1", key));
    return client.chat.completions.create({ model: body.model, stream: body.stream, messages }, more);
  },
  responses: (key, body, more) => {
    const client = new OpenAI(options("/v1", key));
    const { model, stream } = body;
    return client.responses.create({ model, stream, input: body.text }, more);
  },
  transcriptions: async (key, body, more) => {
    const file = await toFile(Buffer.from(body.text), "sound.mp3");
    const client = new OpenAI(options("/v1", key));
    return client.audio.transcriptions.create({ file, model: body.model }, more);
  },
};

async function thrown({ api, key, headers = {}, characters = 5, ...more }) {
  const body = { ...more, text: "x".repeat(characters) };
  let events = 0;
  try {
    const answer = await APIS[api](key, body, { headers });
    if (body.stream) for await (const _ of answer) events += 1;
    return null;
  } catch (error) {
    const { status = null, type = null, requestID = null } = error;
    return { class: error.constructor.name, status, type, requestID, message: error.message, events };
  }
}

const seen = {};
for (const [name, call] of Object.entries(JSON.parse(calls))) seen[name] = await thrown(call);
console.log(JSON.stringify(seen));
