// OpenAI's API under its TypeScript SDK; prints one JSON object. Arguments: BASE_URL PREFIX [CALL...].
//
// PREFIX stands before every model.

import { createHash } from "node:crypto";
import OpenAI, { toFile } from "openai";

const [baseURL, prefix, ...names] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "sk-test-client", maxRetries: 0 });
const MODEL = `${prefix}gpt-4o-mini`;
const SAID = "Sag »grüß Gott« 🙂, please";
const SOUND = Buffer.alloc(200_000, "sound \r\n--");

const TOOL = {
  type: "function",
  function: { name: "weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
};

function chat(more) {
  return { model: MODEL, messages: [{ role: "user", content: SAID }], ...more };
}

function response(more) {
  return { model: MODEL, input: SAID, ...more };
}

async function gathered(items) {
  const found = [];
  for await (const item of items) found.push(item);
  return found;
}

async function bytes(answer) {
  return createHash("sha256").update(Buffer.from(await answer.arrayBuffer())).digest("hex");
}

async function transcription(more) {
  // The form has its parts in the order of these members: the file first.
  const file = await toFile(SOUND, "grüße.mp3", { type: "audio/mpeg" });
  return client.audio.transcriptions.create({ file, model: `${prefix}gpt-4o-transcribe`, ...more });
}

const CALLS = {
  chat: async () => {
    const { data, request_id } = await client.chat.completions.create(chat()).withResponse();
    return { data, request_id };
  },
  chat_stream: async () => gathered(await client.chat.completions.create(chat({ stream: true }))),
  chat_helper: async () => {
    const stream = client.chat.completions.stream(chat({ stream_options: { include_usage: true } }));
    const words = [];
    stream.on("content", (word) => words.push(word));
    return { words, whole: await stream.finalChatCompletion() };
  },
  tool_helper: async () => client.chat.completions.stream(chat({ tools: [TOOL] })).finalChatCompletion(),
  responses: () => client.responses.create(response()),
  responses_stream: async () => gathered(await client.responses.create(response({ stream: true }))),
  responses_helper: async () => {
    const stream = client.responses.stream(response());
    const words = [];
    stream.on("response.output_text.delta", (event) => words.push(event.delta));
    return { words, whole: await stream.finalResponse() };
  },
  completions: async () =>
    gathered(await client.completions.create({ model: MODEL, prompt: SAID, stream: true })),
  embeddings: () => client.embeddings.create({ model: `${prefix}text-embedding-3-small`, input: [SAID] }),
  speech: async () =>
    bytes(await client.audio.speech.create({ model: `${prefix}gpt-4o-mini-tts`, voice: "alloy", input: SAID })),
  transcription: () => transcription(),
  transcription_stream: async () => gathered(await transcription({ stream: true })),
  files: async () => {
    const file = await toFile(SOUND, "batch.jsonl");
    const { id } = await client.files.create({ file, purpose: "batch" });
    return { id, content: await bytes(await client.files.content(id)) };
  },
  models: () => gathered(client.models.list()),
};

const seen = {};
for (const name of names.length ? names : Object.keys(CALLS)) seen[name] = await CALLS[name]();
console.log(JSON.stringify(seen));
